"""What happens when something dies, stops, fills or is damaged: a row each, with the tests that prove it.

A row without a test is no row. `{section.key}` is the key's default. `python -m tools.faults` writes the pages of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """kind: of what goes wrong. happens, lost, get: in a sentence each. tests: "file::function" below tests/, the first is the
    one that the README names."""

    kind: str
    happens: str
    lost: str
    get: str
    tests: tuple[str, ...]


DRIVER, STOP, RANKS = "The driver dies", "Somebody stops the run", "A rank or a node dies"
WORKERS, ROUNDS = "A reference worker, generator or judge dies", "A round"
DISK, OWNER, INPUT, NUMBERS = "Disk and files", "Two drivers", "Data, models, servers, secrets", "Numbers"

FAULTS = (
    Fault(
        DRIVER,
        "driver killed while it prepares data",
        "the part in work; of a file below 4 MiB everything",
        "of a large file only parts of 4,096 rows that were not committed are encoded again",
        (
            "data/test_parts.py::test_a_kill_costs_no_part_that_was_committed",
            "data/test_parts.py::test_a_part_that_is_damaged_is_made_again",
        ),
    ),
    Fault(
        DRIVER,
        "the machine is lost while it prepares data for a run directory in an object store",
        "the part in work, and those of the last 15 s; of a file below 4 MiB everything",
        "another machine goes on from the parts that were committed",
        ("storage/test_parts.py::test_another_machine_takes_up_the_parts",),
    ),
    Fault(
        WORKERS,
        "a maker of parts of the data dies",
        "the part in work",
        "another one makes that part anew; the data are the same bytes",
        (
            "pipelines/test_on_ray.py::test_data_that_two_makers_on_ray_prepare_are_those_of_one_process",
            "data/test_parts.py::test_two_workers_write_what_one_does",
        ),
    ),
    Fault(
        WORKERS,
        "a node joins late and does not see the storage",
        "nothing",
        "it gets no work, and a line names it; where no other node has room, the run is refused by its name",
        ("runtime/test_cluster_nodes.py::test_a_second_node_is_used_and_must_see_the_storage",),
    ),
    Fault(
        DRIVER,
        "driver killed during precompute",
        "shards in work",
        "only uncommitted shards are scored again",
        (
            "pipelines/test_kill.py::test_what_was_committed_before_the_kill_is_not_scored_again",
            "pipelines/test_kill.py::test_the_cache_is_that_of_an_undisturbed_run",
            "pipelines/test_kill.py::test_no_process_of_a_killed_run_is_left",
        ),
    ),
    Fault(
        DRIVER,
        "driver killed during training",
        "steps since the newest checkpoint: at most {train.save_every_minutes} minutes and the step in work",
        "same command, from the newest checkpoint (by time, {train.save_every_minutes} minutes, and `train.save_every`), same "
        "weights bit for bit (fp32, CPU, same ranks)",
        (
            "pipelines/test_kill.py::test_the_model_is_that_of_an_undisturbed_run",
            "pipelines/test_kill.py::test_training_went_on_from_a_checkpoint",
            "pipelines/test_kill.py::test_nothing_half_done_is_left_in_the_run_directory",
        ),
    ),
    Fault(
        DRIVER,
        "driver killed while the reference is moved",
        "steps since the newest checkpoint",
        "same command, same references and weights bit for bit",
        ("pipelines/test_moving_reference.py::test_a_killed_run_ends_with_the_same_bits",),
    ),
    Fault(
        DRIVER,
        "driver and machine are lost, and `run.dir` is `s3://...`",
        "steps since the newest checkpoint; of a round, parts of the last seconds",
        "same command on another machine, from what was committed, same weights bit for bit (fp32, CPU, same ranks)",
        (
            "storage/test_train.py::test_a_killed_training_goes_on_where_nothing_of_it_is",
            "storage/test_train.py::test_killed_rounds_go_on_where_nothing_of_them_is",
            "storage/test_remote_run.py::test_another_machine_sees_what_was_committed_and_fetches_what_it_needs",
        ),
    ),
    Fault(
        DRIVER,
        "the process dies at any request to an object store, or the answer is lost",
        "what no entry of the log had named",
        "what was committed is whole; a put whose answer was lost is known to be ours or not",
        (
            "storage/test_crash_points.py::test_every_request_is_a_point_where_nothing_is_lost",
            "storage/test_object_store.py::test_a_conditional_put_without_an_answer_is_known_to_be_ours_or_not",
            "storage/test_remote_run.py::test_a_commit_whose_answers_are_lost_is_made_once",
            "storage/test_remote_run.py::test_listings_that_come_late_hide_nothing",
        ),
    ),
    Fault(
        DRIVER,
        "the process dies at any step of a durable write",
        "what was being written",
        "nothing lost, nothing twice",
        (
            "artifacts/test_crash_points.py::test_what_a_killed_process_leaves_is_whole_or_not_there",
            "artifacts/test_crash_points.py::test_the_same_work_again_ends_as_if_nothing_had_happened",
        ),
    ),
    Fault(
        STOP,
        "SIGTERM, Ctrl-C, `ray job stop`, a drained node",
        "no step: the one in work is committed",
        "the step in work is committed within `run.stop_grace_s` ({run.stop_grace_s:g}), exit 143 or 130; a second signal ends "
        "at once",
        (
            "pipelines/test_stops.py::test_a_training_commits_its_next_step_and_goes_on",
            "pipelines/test_stops.py::test_a_second_signal_ends_at_once",
            "pipelines/test_stops.py::test_what_takes_longer_than_the_grace_ends_at_once",
            "pipelines/test_stops.py::test_a_command_on_ray_whose_whole_process_group_is_signalled",
        ),
    ),
    Fault(
        STOP,
        "the same while rows are scored, or in a round",
        "nothing that was scored, sampled or judged: what is in work comes to the end of its shard or part",
        "it ends as soon as the shards or parts in work are committed, and says what is; the same command goes on to the same "
        "pairs and weights bit for bit (fp32, CPU, transformers engine)",
        (
            "pipelines/rounds/test_round_stops.py::test_a_round_keeps_what_is_answered",
            "pipelines/rounds/test_round_stops.py::test_samples_that_are_made_ahead_are_kept",
            "pipelines/test_stops.py::test_precompute_finishes_the_shards_in_work",
        ),
    ),
    Fault(
        STOP,
        "SIGTERM at a moment that nobody chose: while data are prepared, in a step, an evaluation, the write of a checkpoint, "
        "the model's publication, a round",
        "at most one step",
        "exit 143, nothing half left, and the same command ends with the weights of a run that nobody stopped",
        (
            "pipelines/test_stop_moments.py::test_a_signal_at_any_moment",
            "pipelines/test_stop_moments.py::test_a_signal_while_the_staging_folder_is_removed",
        ),
    ),
    Fault(
        RANKS,
        "a rank or a node dies",
        "steps since the newest checkpoint",
        "ranks start anew from the newest checkpoint, `train.max_failures` ({train.max_failures}) times without another one; "
        "same weights bit for bit with as many ranks (fp32, CPU)",
        (
            "pipelines/test_healing.py::test_a_rank_that_dies_is_replaced_and_no_bit_changes",
            "pipelines/test_healing.py::test_a_node_goes_and_another_comes",
            "pipelines/test_healing.py::test_failures_have_a_budget_that_a_commit_fills_again",
        ),
    ),
    Fault(
        RANKS,
        "one step dies twice of one cause",
        "steps since the newest checkpoint",
        "the run ends and names its rows",
        ("pipelines/test_healing.py::test_a_step_that_dies_twice_ends_the_run_and_names_its_rows",),
    ),
    Fault(
        RANKS,
        "a rank hangs",
        "steps since the newest checkpoint",
        "all ranks stop; the error names the rank and where it is",
        (
            "runtime/test_gang.py::test_a_sleeping_rank_is_named_with_the_line_it_sleeps_in",
            "runtime/test_gang.py::test_a_rank_that_waits_in_a_collective_is_not_the_one_behind",
        ),
    ),
    Fault(
        RANKS,
        "a micro-batch does not fit into memory",
        "steps since the newest checkpoint",
        "training goes on from the newest checkpoint with smaller ones, same update",
        ("pipelines/test_out_of_memory.py::test_the_run_goes_on_with_smaller_micro_batches",),
    ),
    Fault(
        RANKS,
        "other ranks, another ZeRO stage or offload on resume",
        "nothing",
        "same state bit for bit by parameter name, same sample order; the summary says so",
        (
            "train/test_elastic.py::test_every_cell_goes_on_from_the_one_before",
            "pipelines/test_resume.py::test_a_run_goes_on_with_other_ranks_and_another_stage",
        ),
    ),
    Fault(
        RANKS,
        "hosts whose names resolve to loopback",
        "nothing",
        "ranks meet through the interface of each node's Ray address",
        ("pipelines/test_two_hosts.py::test_training_over_two_hosts_and_a_third_that_joins",),
    ),
    Fault(
        WORKERS,
        "a run that scores on a shared cache dies",
        "the shards in work",
        "other runs that want its shards score them",
        (
            "pipelines/test_shared_scoring.py::test_what_a_dead_run_claimed_is_taken_over",
            "artifacts/test_claim.py::test_a_claim_ends_with_its_process",
        ),
    ),
    Fault(
        WORKERS,
        "a reference worker dies",
        "its shard in work",
        "its shard goes to another one, a bounded number of times; with smaller batches where it may have been memory",
        (
            "runtime/test_pool.py::test_a_killed_worker_loses_nothing_and_nothing_comes_twice",
            "runtime/test_pool.py::test_an_item_that_kills_every_worker_ends_the_run",
            "runtime/test_pool.py::test_an_item_that_killed_two_workers_is_tried_with_less_memory",
        ),
    ),
    Fault(
        WORKERS,
        "a reference worker, generator or judge hangs",
        "its item in work",
        "ended after its `hang_timeout_s` ({reference.hang_timeout_s:g}), counts as dead; the message has worker, item and the "
        "line it was at. With `run.runtime: local`, one that runs in the driver's process prints where it is and is not ended",
        (
            "runtime/test_pool.py::test_a_worker_that_hangs_is_ended_and_its_item_goes_to_another_one",
            "runtime/test_pool.py::test_a_hang_that_no_retry_is_left_for_names_worker_stack_and_key",
        ),
    ),
    Fault(
        WORKERS,
        "a batch of the reference does not fit into memory",
        "nothing",
        "done in halves, said once; values within the tolerance of the dtype",
        ("reference/test_score.py::test_a_batch_that_does_not_fit_is_done_in_halves",),
    ),
    Fault(
        WORKERS,
        "a generator or the judge dies in a round",
        "its prompts in work",
        "its prompts go to another one, a bounded number of times",
        (
            "pipelines/rounds/test_deaths.py::test_a_generator_dies",
            "pipelines/rounds/test_deaths.py::test_the_judge_dies",
        ),
    ),
    Fault(
        WORKERS,
        "trainers or a generator are killed during a weight sync",
        "the copy of the weights in shared memory",
        "a new generator reads the committed folder, a round without one is made again; the file is removed by the driver, or "
        "by whoever shares or takes weights next on that node",
        (
            "artifacts/test_shared_files.py::test_files_of_a_process_that_was_killed_are_swept_and_those_of_a_living_one_stay",
            "pipelines/rounds/test_direct_push.py::test_a_generator_that_is_killed_over_a_push_leaves_no_file_and_its_successor_reads_the_folder",
            "pipelines/rounds/test_direct_push.py::test_seventy_pushes_leave_no_file_and_no_growth",
        ),
    ),
    Fault(
        WORKERS,
        "a vLLM generator dies with several requests in work",
        "its requests in work; the samples of others stay as they are written",
        "its requests go to others and are sampled again; what was in work at two deaths is tried alone, so that an item that "
        "kills is named",
        (
            "runtime/test_several.py::test_what_a_dead_worker_had_in_work_goes_to_others_and_what_it_finished_does_not",
            "runtime/test_several.py::test_an_item_that_kills_again_and_again_is_found_among_those_in_work",
            "runtime/test_pool.py::test_several_items_in_work_at_two_workers_of_which_one_dies",
            "pipelines/rounds/test_vllm_rounds.py::test_generators_follow_the_trainers",
        ),
    ),
    Fault(
        WORKERS,
        "a node joins during precompute",
        "nothing",
        "with a range of `reference.num_workers` it gets work",
        ("pipelines/test_two_hosts.py::test_training_over_two_hosts_and_a_third_that_joins",),
    ),
    Fault(
        WORKERS,
        "nodes are not there yet",
        "nothing",
        "`run.wait_for_nodes_s`: asked for, waited for with a line of progress, used as they come",
        ("pipelines/test_autoscaling.py::test_nodes_are_asked_for_and_waited_for",),
    ),
    Fault(
        ROUNDS,
        "trainers or driver die in a round",
        "parts in work, and steps since the newest checkpoint",
        "same command, same pairs, weights and measures bit for bit (fp32, CPU, transformers engine)",
        (
            "pipelines/rounds/test_deaths.py::test_the_driver_dies_again_and_again",
            "pipelines/rounds/test_deaths.py::test_the_trainers_die_and_the_same_call_goes_on",
        ),
    ),
    Fault(
        ROUNDS,
        "an attempt ends in a round that ends by its pairs, or samples are others than those that were judged",
        "parts in work",
        "same command, same end of the round, pairs and weights bit for bit (fp32, CPU, transformers engine); what is another "
        "sample now is judged anew",
        (
            "pipelines/rounds/test_pairs_per_round.py::test_an_attempt_that_ends_anywhere_changes_nothing",
            "pipelines/rounds/test_judging_meanwhile.py::test_a_batch_whose_samples_are_others_now_is_judged_anew",
        ),
    ),
    Fault(
        ROUNDS,
        "a rank or a generator that stands over all rounds dies between its turns",
        "nothing",
        "another one starts and loads what it had. A rank that died without work counts as a failure, and no step is to blame",
        (
            "pipelines/rounds/test_standing_trainers.py::test_a_rank_that_dies_between_two_rounds_costs_a_start_and_no_number",
            "pipelines/rounds/test_generators.py::test_the_only_generator_dies_between_the_push_and_its_proof",
            "pipelines/test_healing.py::test_a_rank_that_died_without_work_is_counted_and_no_step_is_to_blame",
        ),
    ),
    Fault(
        ROUNDS,
        "a function or pattern of the config judges a row without an end",
        "the row's score",
        "the row fails after `judge.timeout_s` ({judge.function_timeout_s:g}); a function that is handed in fails the round",
        (
            "pipelines/rounds/test_judging.py::test_code_that_the_config_names_is_ended_where_it_hangs",
            "pipelines/rounds/test_judging.py::test_a_function_that_is_handed_in_and_hangs_fails_the_round",
        ),
    ),
    Fault(
        ROUNDS,
        "the driver, or trainers with `carried`, are killed where `rounds.save_every` left rounds unsaved",
        "trainings since the newest saved round",
        "they are made again from the committed pairs, to the same weights bit for bit (CPU); the folder in memory is removed",
        (
            "pipelines/rounds/test_save_every.py::test_after_a_kill_rounds_that_were_not_saved_are_trained_again",
            "pipelines/rounds/test_save_every.py::test_trainers_that_die_in_an_unsaved_stretch_go_on_from_the_newest_saved_round",
            "artifacts/test_shared_folder.py::test_what_a_killed_process_left_is_removed_by_whoever_comes_next",
        ),
    ),
    Fault(
        ROUNDS,
        "the carried optimizer state of a round is damaged",
        "rounds after the damage",
        "refused before the next round, with the folders to remove so that it is made again",
        ("pipelines/rounds/test_carried.py::test_a_round_whose_state_is_damaged_is_made_again",),
    ),
    Fault(
        ROUNDS,
        "a round makes no pair",
        "nothing",
        "it is committed as one that trained nothing, with what became of its samples",
        ("pipelines/rounds/test_no_pairs.py::test_a_round_without_pairs_leaves_the_policy_as_it_is",),
    ),
    Fault(
        DISK,
        "the disk fills while a run goes on",
        "what was being written",
        "it ends with the path, what was needed and what is free, and leaves no half; the same command goes on when there is "
        "room",
        (
            "pipelines/test_full_disk.py::test_training_goes_on_when_there_is_room_again",
            "pipelines/test_full_disk.py::test_scoring_goes_on_when_there_is_room_again",
            "pipelines/test_full_disk.py::test_metrics_are_whole_lines_up_to_a_full_disk",
        ),
    ),
    Fault(
        DISK,
        "the disk is too small for what a run will keep",
        "nothing",
        "refused before it begins, with the bytes of each part",
        (
            "pipelines/test_disk_room.py::test_a_training_that_does_not_fit_is_refused_before_it_begins",
            "pipelines/test_disk_room.py::test_a_cache_that_does_not_fit_is_refused_before_it_is_scored",
        ),
    ),
    Fault(
        DISK,
        "a byte flips in a cached shard",
        "that shard",
        "found, named, only that shard is scored again",
        (
            "artifacts/test_damage.py::test_a_damaged_shard_is_kept_apart_and_scored_again",
            "artifacts/test_damage.py::test_each_of_200_flipped_bytes_is_found",
        ),
    ),
    Fault(
        DISK,
        "a compaction or a collection of a cache is killed, at any write or removal",
        "nothing",
        "small shards or the merged one; no value changes, and the same command goes on",
        (
            "artifacts/test_crash_points.py::test_what_a_killed_process_leaves_is_whole_or_not_there",
            "artifacts/test_crash_points.py::test_the_same_work_again_ends_as_if_nothing_had_happened",
            "storage/test_cache_company.py::test_nothing_that_counts_or_is_open_is_removed",
        ),
    ),
    Fault(
        DISK,
        "a merged shard of a cache is damaged",
        "that shard",
        "what it replaced counts again while it is there; nothing is collected before the merged shard was read whole",
        ("artifacts/test_compaction.py::test_a_damaged_merged_shard_gives_back_what_it_replaced",),
    ),
    Fault(
        DISK,
        "a checkpoint is damaged",
        "steps since the one before",
        "passed over, the one before is used, and the log says so",
        (
            "pipelines/test_resume.py::test_damaged_checkpoints_are_passed_over",
            "pipelines/test_resume.py::test_when_all_checkpoints_are_damaged_must_says_so",
        ),
    ),
    Fault(
        DISK,
        "a checkpoint holds pickles, from an earlier version or anybody",
        "the checkpoint",
        "refused unread",
        ("pipelines/test_resume.py::test_pickles_in_a_committed_checkpoint_are_refused_unread",),
    ),
    Fault(
        OWNER,
        "a second driver in the run directory",
        "nothing",
        "refused, with the process that holds it",
        ("pipelines/test_kill.py::test_a_second_driver_is_refused_and_told_who_is_there",),
    ),
    Fault(
        OWNER,
        "a second driver on the same address of an object store, on another machine",
        "what the older driver had not committed",
        "the driver that began last goes on; the other one can commit nothing more",
        (
            "storage/test_two_drivers.py::test_two_drivers_and_what_they_remove",
            "storage/test_remote_run.py::test_of_two_drivers_the_one_that_began_last_goes_on",
            "storage/test_remote_run.py::test_a_store_that_does_not_keep_to_conditions_is_refused",
            "storage/test_remote_run.py::test_who_gives_way_reads_what_was_committed_and_disturbs_nobody",
        ),
    ),
    Fault(
        OWNER,
        "its lock is removed, or the file system has no flock",
        "what the older driver had not committed",
        "the driver that began last goes on; the other one can commit nothing more, and ends with the name of the one that "
        "took over",
        (
            "artifacts/test_lease.py::test_in_any_order_of_two_drivers_only_the_newest_attempt_commits",
            "artifacts/test_lease.py::test_without_flock_the_log_keeps_two_drivers_apart_and_one_note_says_so",
            "artifacts/test_lease.py::test_a_clock_that_jumps_decides_nothing",
        ),
    ),
    Fault(
        INPUT,
        "somebody on the network tries the ports of a run on one machine",
        "nothing",
        "every port is on loopback, on both runtimes",
        ("runtime/test_loopback.py::test_every_listener_of_a_session_with_two_ranks_is_on_loopback",),
    ),
    Fault(
        INPUT,
        "a judge's server is silent, slow, busy, floods, or answers nonsense",
        "the scores of those rows",
        "its rows fail with the reason; tries are told; a server that is gone is not asked for every row",
        (
            "judge/test_hostile_servers.py::test_a_server_that",
            "pipelines/rounds/test_judging.py::test_a_server_that_refuses_everything_stops_the_round_after_a_batch",
        ),
    ),
    Fault(
        INPUT,
        "an answer speaks to the judge",
        "nothing",
        "it is judged as text between marks that it cannot forge, and counted",
        (
            "judge/test_pairwise.py::test_no_answer_can_end_its_own_marks",
            "pipelines/rounds/test_judging.py::test_answers_that_speak_to_the_judge_are_counted",
        ),
    ),
    Fault(
        INPUT,
        "an error holds a secret of the environment",
        "nothing",
        "`<redacted NAME>` in messages, reasons and saved settings; rows stay",
        (
            "pipelines/test_secrets.py::test_a_rank_that_tells_its_environment",
            "pipelines/test_secrets.py::test_a_round_whose_judges_tell_their_key",
        ),
    ),
    Fault(
        INPUT,
        "a model folder lacks weights",
        "nothing",
        "refused, where they would be drawn at random",
        ("models/test_load.py::test_a_folder_that_lacks_weights_is_refused",),
    ),
    Fault(
        INPUT,
        "a file of data, a config or a model folder is damaged, or made to do harm",
        "its rows, where the rest is good",
        "named with exit code 2, or its rows left out with a reason; at most 10 CPU seconds and 500 MB",
        ("hostile/test_hostile.py::test_a_hostile_input_is_named_and_costs_little",),
    ),
    Fault(
        NUMBERS,
        "{train.max_nonfinite_steps} non-finite steps in a row",
        "those steps",
        "skipped, counted with their rows, then the run stops",
        (
            "train/test_nonfinite.py::test_three_in_a_row_stop_the_run",
            "train/test_nonfinite.py::test_a_step_that_fails_leaves_the_checkpoint_before_it",
        ),
    ),
)
"""In the order of the pages."""
