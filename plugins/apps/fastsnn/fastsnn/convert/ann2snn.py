"""`convert_ann_to_snn` and `TinyANN`, from fastsnn_convert."""

from fastsnn_convert.ann2snn import TinyANN, convert_ann_to_snn

__all__ = ["TinyANN", "convert_ann_to_snn"]
