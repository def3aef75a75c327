#!/bin/bash
# One training run on a Slurm allocation: Ray starts on every node, the run goes through, Ray ends.
#   sbatch slurm.sh /shared/run.yaml
# Everything that run.yaml names (run.dir, reference.cache_dir, model.path) lies on storage that all nodes see. A run that is
# preempted or comes to its time limit saves the step in work and is put back into the queue; it goes on from there.
#SBATCH --job-name=raydpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# 120 s before the end the script below gets SIGUSR1: more than run.stop_grace_s (25), and what a checkpoint takes.
#SBATCH --signal=B:USR1@120
set -euo pipefail

config=${1:?usage: sbatch slurm.sh /shared/run.yaml [section.key=value ...]}
shift
# shellcheck source=/dev/null
source "${RAYDPO_VENV:-$HOME/raydpo/.venv}/bin/activate" # EDIT: where raydpo is installed, on every node

# The head is on the first node, where this script runs, too. Its address, not its name, which may resolve to loopback there.
head_name=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_address=$(srun --nodes=1 --ntasks=1 --nodelist="$head_name" hostname --all-ip-addresses | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds that nodes may take to come

# raydpo reads RAY_ADDRESS, which symmetric-run does not set. The driver notes its process, for the signal below.
pid_file=$(mktemp "${TMPDIR:-/tmp}/raydpo-driver-XXXXXX")
# shellcheck disable=SC2016 # the single quotes are meant: it is expanded on the head
driver=(bash -c 'echo "$$" >"$1"; export RAY_ADDRESS=$2; shift 2; exec python -m raydpo "$@"' driver
    "$pid_file" "$head_address:$port" train "$config" "$@")

# The driver alone is asked to end: a signal to the step would reach Ray first, and ranks would be gone before they can save.
# shellcheck disable=SC2329 # the trap calls it
stop_driver() {
    if [ -s "$pid_file" ]; then
        echo "asking the driver (process $(cat "$pid_file")) to save and end"
        kill -TERM "$(cat "$pid_file")" || true
    fi
}
trap stop_driver USR1 TERM

srun --kill-on-bad-exit=0 ray symmetric-run --address "$head_address:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --disable-usage-stats -- "${driver[@]}" &
step=$!
status=0
wait "$step" || status=$?
# A signal ends the first wait early; the step goes on.
while kill -0 "$step" 2>/dev/null; do
    status=0
    wait "$step" || status=$?
done
# symmetric-run ends with 0, too, when Ray did not start, or not on every node in time.
if [ ! -s "$pid_file" ] && [ "$status" -eq 0 ]; then
    echo "Ray did not start on all nodes, so nothing was run; its messages are above"
    status=1
fi
rm -f "$pid_file"
if [ "$status" -eq 143 ]; then # the run saved and ended because it was asked to
    echo "saved; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
