"""Train and test a detector in Detectron2 from weights that mocokit exported.

    python train_net.py --config-file voc-c4-24k.yaml --num-gpus 8 [KEY VALUE ...]

This file needs Detectron2 alone, not mocokit. DETECTRON2_DATASETS names the folder with VOC2007, VOC2012 or coco.
"""

from typing import Any

from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):  # type: ignore[misc]
    """One more normalisation after res5 (MoCo v1 sec. 4.2)."""

    def __init__(self, cfg: Any, input_shape: Any) -> None:
        super().__init__(cfg, input_shape)
        self.res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, self.res5[-1].out_channels))


class Trainer(DefaultTrainer):  # type: ignore[misc]
    """Detectron2's trainer with the evaluator of the data set."""

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str, output_folder: str | None = None) -> Any:
        """VOC07's rule for VOC, COCO's for COCO."""
        if "voc" in dataset_name:
            return PascalVOCDetectionEvaluator(dataset_name)
        return COCOEvaluator(dataset_name, output_dir=output_folder or cfg.OUTPUT_DIR)


def main(arguments: Any) -> Any:
    """Train, then test."""
    cfg = get_cfg()
    cfg.merge_from_file(arguments.config_file)
    cfg.merge_from_list(arguments.opts)
    cfg.freeze()
    default_setup(cfg, arguments)
    if arguments.eval_only:
        from detectron2.checkpoint import DetectionCheckpointer

        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=arguments.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=arguments.resume)
    return trainer.train()


if __name__ == "__main__":
    asked = default_argument_parser().parse_args()
    launch(
        main,
        asked.num_gpus,
        num_machines=asked.num_machines,
        machine_rank=asked.machine_rank,
        dist_url=asked.dist_url,
        args=(asked,),
    )
