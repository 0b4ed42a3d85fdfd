"""Train and evaluate a model over text, audio and video.

    python train.py --config configs/runs/toy.yaml --data_root datasets/toy --output_dir outputs/toy
    accelerate launch train.py --train_file train.csv --validation_file validation.csv --output_dir outputs/mine

Every flag: python train.py --help
"""

import os

from simple_multimodal.errors import ending_at_ctrl_c

# Set before torch is imported: idle OpenMP threads then sleep instead of spinning, which leaves the cores to the
# processes that load data.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

with ending_at_ctrl_c():  # the imports take seconds
    from arguments import DataArguments, ModelArguments, MultimodalTrainingArguments, TaskOptions, parse_args


def run(
    model_args: ModelArguments, data_args: DataArguments, options: TaskOptions, args: MultimodalTrainingArguments
) -> dict[str, float]:
    """Open the data, make the model and the trainer, then train, evaluate and test. Return the metrics."""
    # Imported here so that --help and errors in flags do not wait for the models.
    from transformers import set_seed

    from arguments.inputs import describe_run, make_model, make_task, open_splits
    from simple_multimodal.training.checkpoints import find_checkpoint
    from simple_multimodal.training.results import print_where_results_are
    from simple_multimodal.training.trainer import MultimodalTrainer

    set_seed(args.seed)  # before the model is made: new layers are initialized randomly
    task = make_task(model_args, data_args, options, args)
    splits = open_splits(task, model_args, data_args, args)  # no media file is opened yet
    record = describe_run(task, splits, model_args, data_args, args)
    checkpoint = find_checkpoint(args, record) if args.do_train else None
    model, processor = make_model(task, splits, checkpoint, model_args, data_args, args)
    trainer = MultimodalTrainer(
        model,
        args,
        processor=processor,
        train_dataset=splits.training,
        eval_dataset=splits.evaluation,
        task=task,
        features=data_args.features,
        collator_settings=data_args.collator_settings,
        drop_modalities=data_args.drop_modalities,
        run_record=record,
    )

    metrics: dict[str, float] = {}
    if args.do_train:
        metrics = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
        trainer.save_model()
        trainer.save_state()
        if metrics:  # empty if the run was already complete
            trainer.log_and_save_metrics("train", metrics)
    elif model_args.model_name_or_path is None:  # assembled from pretrained towers
        trainer.save_model()
    if args.do_eval:
        metrics |= trainer.log_and_save_metrics("eval", trainer.evaluate())
    if args.do_predict:
        tested = trainer.evaluate(splits.test, metric_key_prefix="test")
        metrics |= trainer.log_and_save_metrics("test", tested)
    print_where_results_are(trainer)
    return metrics


def main() -> None:
    with ending_at_ctrl_c():
        model_args, data_args, options, args = parse_args(checks_files=True)
        from simple_multimodal.training.run_control import running

        with running(args, flags={**vars(model_args), **vars(data_args), **vars(options), **vars(args)}):
            run(model_args, data_args, options, args)


if __name__ == "__main__":
    main()
