"""Train and evaluate a model over text, audio and video.

    python train.py --config configs/runs/toy.yaml --data_root datasets/toy --output_dir outputs/toy
    accelerate launch train.py --train_file train.csv --validation_file validation.csv --output_dir outputs/mine

Every flag: python train.py --help
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

# Idle threads of torch must sleep, not spin: they share the cores with the processes that load data. Read by torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from arguments import DataArguments, ModelArguments, MultimodalTrainingArguments, parse_args


def run(model_args: ModelArguments, data_args: DataArguments, args: MultimodalTrainingArguments) -> dict[str, float]:
    """The main job: data, model, trainer; then train, evaluate and save. Returns the metrics."""
    # Imported here, so that --help and wrong flags are answered without them.
    from transformers import set_seed

    from simple_multimodal.assembly import check_inputs
    from simple_multimodal.models.distributed import leave_process_group
    from simple_multimodal.models.lora import prepare_trainable
    from simple_multimodal.tasks import models
    from simple_multimodal.tasks.registry import get_task
    from simple_multimodal.tasks.retrieval.twins import PairSet
    from simple_multimodal.training import trainer as training
    from simple_multimodal.training.checkpoints import find_checkpoint
    from simple_multimodal.training.results import write_evaluation, write_results
    from simple_multimodal.training.run_record import check_test_set, make_run_record, selection_split

    set_seed(args.seed)  # before any module is built: new layers are drawn, too

    # Data: rows of paths; no media file is opened yet.
    task_class = get_task(model_args.task)
    rows = partial(
        task_class.open_rows,
        modalities=model_args.modalities,
        cache_dir=model_args.cache_dir,
        roots=data_args.roots,
        follow_links=data_args.follow_links,
    )
    train_set = rows(data_args.train_path, max_samples=data_args.max_train_samples) if args.do_train else None
    eval_set = rows(data_args.validation_path, max_samples=data_args.max_eval_samples) if args.evaluates else None
    test_set = rows(data_args.test_path, max_samples=data_args.max_predict_samples) if args.do_predict else None
    pair_paths = data_args.pair_paths if args.do_eval else []
    pair_sets = [PairSet.from_file(pairs, swapped and rows(swapped)) for pairs, swapped in pair_paths]
    task = task_class.from_flags(**model_args.task_options, matching_top_k=args.matching_top_k, pair_files=pair_sets)

    # The run: what it is, and where it goes on from.
    record = make_run_record(
        {**vars(model_args), **vars(data_args), **args.to_sanitized_dict()},
        command=sys.argv,
        data={"training": train_set, "evaluation": eval_set, "test": test_set},
        selection_split=selection_split(
            eval_set, selects=args.selects, on_test=data_args.select_on_test, source=model_args.model_name_or_path
        ),
        precision=args.precision,
    )
    checkpoint = None
    if args.do_train:
        checkpoint = find_checkpoint(
            args.output_dir, record, overwrite=args.overwrite_output_dir, resume_from=args.resume_from_checkpoint
        )
    source = checkpoint or model_args.model_name_or_path
    if test_set is not None:
        check_test_set(test_set, train_set, source)

    # Model and processor: saved ones, or new ones out of pretrained towers and configs.
    if source is None:
        captions = (train_set or eval_set or test_set).captions
        make = partial(models.build, **model_args.building_settings, captions=captions)
    else:
        make = partial(models.load, source, **model_args.loading_settings)
    settings = data_args.processor_settings
    model, processor = make(task=task, train_dataset=train_set, is_trained=args.do_train, processor_settings=settings)
    check_inputs(model, processor, data_args.max_seq_length, model_args.changed_config_settings, model_args.modalities)
    prepare_trainable(model, model_args.freeze, model_args.lora, resumes=checkpoint is not None)
    trainer = training.MultimodalTrainer(
        model,
        args,
        processor=processor,
        train_dataset=train_set,
        eval_dataset=eval_set,
        task=task,
        features=data_args.features,
        collator_settings=data_args.collator_settings,
        drop_modalities=data_args.drop_modality,
        run_record=record,
    )

    # Train, evaluate, save.
    metrics: dict[str, float] = {}
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        trainer.save_model()
        trainer.save_state()
        if result.metrics:  # none if the run was complete already
            trainer.save_metrics("train", result.metrics)
        metrics |= result.metrics
    elif source is None:  # assembled anew
        trainer.save_model()
    if args.do_eval:
        evaluated = trainer.evaluate()
        trainer.save_metrics("eval", evaluated)
        metrics |= evaluated
        write_results(trainer)
    if args.do_predict:
        tested = trainer.evaluate(test_set, metric_key_prefix="test")
        trainer.save_metrics("test", tested)
        write_evaluation(trainer, Path(args.output_dir, "test_evaluation.json"))
        metrics |= tested
    leave_process_group()
    return metrics


def main() -> None:
    arguments = parse_args()

    from simple_multimodal.models.distributed import decide_in_first_process
    from simple_multimodal.output_folder import writing_into
    from simple_multimodal.training.run_control import ending_in_one_line

    output_dir = arguments[-1].output_dir
    with ending_in_one_line(), writing_into(output_dir, command="train.py", decide=decide_in_first_process):
        metrics = run(*arguments)
    if arguments[-1].process_index == 0:
        print(json.dumps({name.removeprefix("eval_"): value for name, value in metrics.items()}))


if __name__ == "__main__":
    main()
