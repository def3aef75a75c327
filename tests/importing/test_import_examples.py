"""tools/import_examples.py counts what passes, what passes with values or permissions, and what has images."""

from __future__ import annotations

from pathlib import Path

from tools.import_examples import _count

COMMAND = "python trl/scripts/dpo.py --model_name_or_path {model} --dataset_name o/d {more}\n\n"


def test_trainings_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "trl" / "scripts"
    folder.mkdir(parents=True)
    commands = (
        COMMAND.format(model="m/q", more="--beta 0.2"),
        COMMAND.format(model="m/q", more="--per_device_train_batch_size $SIZE"),
        COMMAND.format(model="m/q", more="--optim lion_8bit"),
        COMMAND.format(model="m/Qwen-VL-2", more=""),
        COMMAND.format(model="m/q", more="--config other.yaml"),
    )
    (folder / "dpo.py").write_text(f'"""\n{"".join(commands)}"""\n')
    found = _count("trl", tmp_path, False)
    numbers = {key: value for key, value in found.items() if key != "stopped_by"}
    assert numbers == {
        "text": 3,
        "passed": 1,
        "passed_with_stand_ins_for_values": 2,
        "passed_with_allowed": 3,
        "image": 1,
        "failed": 0,
    }
    assert found["stopped_by"] == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "optim": 1}
