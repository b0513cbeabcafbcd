"""Colour transfer: two pictures exchange their colours, with one map and its inverse."""

from brenier.color.baselines import histogram_matching as histogram_matching
from brenier.color.baselines import reinhard as reinhard
from brenier.color.images import MAX_PIXELS as MAX_PIXELS
from brenier.color.images import ColorImage as ColorImage
from brenier.color.images import read_image as read_image
from brenier.color.images import write_png as write_png
from brenier.color.mapping import color_samples as color_samples
from brenier.color.mapping import transfer as transfer
from brenier.color.pipeline import STEPS as STEPS
from brenier.color.pipeline import ColorResult as ColorResult
from brenier.color.pipeline import color_transfer as color_transfer
from brenier.color.pipeline import write_color_report as write_color_report
from brenier.color.scores import channel_histograms as channel_histograms
from brenier.color.scores import cloud_distance as cloud_distance
from brenier.color.scores import color_scores as color_scores
from brenier.color.scores import emd_heights as emd_heights
from brenier.color.scores import emd_positions as emd_positions
from brenier.color.scores import histogram_intersection as histogram_intersection
