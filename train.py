"""Train and evaluate a model over text, audio and video.

    python train.py --config configs/runs/toy.yaml --data_root datasets/toy --output_dir outputs/toy
    accelerate launch train.py --train_file train.csv --validation_file validation.csv --output_dir outputs/mine

Every flag: python train.py --help
"""

import json
import os
import sys
from functools import partial

# Idle threads of torch must sleep, not spin: they share the cores with the processes that load data. Read by torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from arguments import DataArguments, ModelArguments, MultimodalTrainingArguments, parse_args


def run(model_args: ModelArguments, data_args: DataArguments, args: MultimodalTrainingArguments) -> dict[str, float]:
    """The main job: data, model, trainer; then train, evaluate and save. Returns the metrics."""
    # Imported here, so that --help and wrong flags are answered without them.
    from transformers import set_seed
    from transformers.utils import logging

    from simple_multimodal.data.collator import MultimodalCollator
    from simple_multimodal.models.distributed import leave_process_group
    from simple_multimodal.models.fusion.crossformer import load_fusion_config
    from simple_multimodal.training import assembly, checkpoints
    from simple_multimodal.training.evaluation import PairSet
    from simple_multimodal.training.results import write_results
    from simple_multimodal.training.run_record import make_run_record, selection_split
    from simple_multimodal.training.trainer import MultimodalTrainer

    set_seed(args.seed)  # before any module is built: new layers are drawn, too

    # Data: rows of paths; no media file is opened yet.
    row_settings = {"modalities": model_args.modalities, "cache_dir": model_args.cache_dir, **data_args.file_settings}
    rows = partial(assembly.open_manifest, model_args.task, **row_settings)
    train_set = rows(data_args.train_path, max_samples=data_args.max_train_samples) if args.do_train else None
    evaluates = args.do_eval or args.eval_strategy != "no"
    eval_set = rows(data_args.validation_path, max_samples=data_args.max_eval_samples) if evaluates else None
    pair_sets = [
        PairSet.from_file(path, swapped and rows(swapped)) for path, swapped in data_args.pair_paths if args.do_eval
    ]

    # The run: what it is, and where it goes on from.
    record = make_run_record(
        {**vars(model_args), **vars(data_args), **args.to_sanitized_dict()},
        command=sys.argv,
        data={"training": train_set, "evaluation": eval_set},
        selection_split=selection_split(
            eval_set, selects=args.selects, on_test=data_args.select_on_test, source=model_args.model_name_or_path
        ),
        precision=args.precision,
    )
    checkpoint = None
    if args.do_train:
        checkpoint = checkpoints.find_checkpoint(
            args.output_dir, record, overwrite=args.overwrite_output_dir, resume_from=args.resume_from_checkpoint
        )
    source = checkpoint or model_args.model_name_or_path

    # Model and processor: saved ones, or new ones out of pretrained towers and configs.
    answers = assembly.answer_settings(model_args.task, source, model_args.answers_file, train_set)
    if source is not None:
        processor = assembly.load_processor(source, cache_dir=model_args.cache_dir, **data_args.processor_settings)
        model = assembly.load_model(
            model_args.task, source, is_trained=args.do_train, **model_args.loading_settings, **answers
        )
    else:
        towers = assembly.load_towers({m: model_args.tower_config_name(m) for m in model_args.modalities})
        names = assembly.processor_names(towers, model_args.processor_names, model_args.pretrained_towers)
        processor = assembly.build_processor(
            towers, captions=(train_set or eval_set).captions, **names, **data_args.processor_settings
        )
        config = assembly.build_config(
            towers,
            load_fusion_config(model_args.tower_config_name("fusion")),
            processor,
            is_trained=args.do_train,
            **model_args.assembly_settings,
            **answers,
        )
        model, reports = assembly.MODEL_CLASSES[config.model_type][model_args.task].from_encoders(
            config,
            model_args.pretrained_towers,
            same_vocabulary=names["tokenizer_name"] is not None,
            cache_dir=model_args.cache_dir,
        )
        for report in reports if args.should_log else ():
            logging.get_logger("simple_multimodal").warning(report.summary())
    assembly.check_inputs(
        model, processor, data_args.max_seq_length, model_args.changed_config_settings, model_args.modalities
    )
    assembly.choose_trained(model, model_args.freeze, model_args.lora, resumes=checkpoint is not None)
    used = [train_set, eval_set, *(pairs.swapped for pairs in pair_sets)]
    settings = data_args.collator_settings | {
        "seed": args.seed,
        "draws": assembly.build_draws(model, **model_args.mask_settings),
        "label2id": model.config.label2id if model_args.task == "question_answering" else None,
        "features": assembly.load_features(model, processor, used, args.do_train, **data_args.feature_settings),
    }
    trainer = MultimodalTrainer(
        model,
        args,
        data_collator=MultimodalCollator(processor, training=True, **settings),
        eval_collator=MultimodalCollator(processor, drop_modalities=data_args.drop_modality, **settings),
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=processor,
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
        evaluated = trainer.evaluate() | trainer.evaluate_pairs(pair_sets)
        trainer.save_metrics("eval", evaluated)
        metrics |= evaluated
        write_results(trainer)
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
