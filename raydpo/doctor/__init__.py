"""What `raydpo doctor` finds on this machine before a run."""

from raydpo.doctor.examination import examine_all
from raydpo.doctor.finding import Finding

__all__ = ["Finding", "examine_all"]
