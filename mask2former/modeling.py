"""The models: backbone, pixel decoder and transformer decoder, and the segmentation head on top."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mask2former.checkpoints.huggingface import BASE_PREFIX, from_huggingface, to_huggingface
from mask2former.checkpoints.weights import read_weights, save_weights
from mask2former.configuration import Mask2FormerConfig, labels_by_id
from mask2former.configuration.backbones import CONFIG_NAME
from mask2former.images.resize import size_of
from mask2former.io.errors import DataError
from mask2former.losses.annotations import Annotation, check_annotations, make_annotations
from mask2former.losses.loss import segmentation_losses
from mask2former.model.backbones import make_backbone
from mask2former.model.gradient_checkpointing import GradientCheckpointing
from mask2former.model.outputs import (
    Mask2FormerForUniversalSegmentationOutput,
    Mask2FormerModelOutput,
)
from mask2former.model.padding import checked_mask, pad_to_multiple, valid_sizes
from mask2former.model.pixel_decoder import PixelDecoder, PixelDecoderOutput
from mask2former.model.transformer_decoder import DecoderOutput, TransformerDecoder, mask_logits

if TYPE_CHECKING:
    from typing_extensions import Self


class _Pretrained(GradientCheckpointing, nn.Module):
    """Loading and saving, for a model whose parameters the format names behind `prefix`."""

    config: Mask2FormerConfig
    prefix = ""

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        config: Mask2FormerConfig | None = None,
        ignore_mismatched_sizes: bool = False,
        **overrides: Any,
    ) -> Self:
        """Load `config.json` and the weights from a local folder or a Hugging Face repository.

        The weights are `model.safetensors` or `pytorch_model.bin`, or shards of either with their
        index. Every parameter must be in the checkpoint and every key of the checkpoint must be
        known. The model is returned in float32 and evaluation mode.

        To fine-tune with other classes, give them and `ignore_mismatched_sizes`:

            from_pretrained(name, id2label={0: "cat", 1: "dog"}, ignore_mismatched_sizes=True)

        Args:
            name_or_folder: a folder written by `save_pretrained` (here or in transformers), or a
                repository such as "facebook/mask2former-swin-tiny-coco-panoptic".
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads are kept; default: the hub's own cache.
            token: for private repositories; default: the one that `hf auth login` stored.
            local_files_only: never ask the hub.
            config: used instead of the `config.json`, which need not be there.
            ignore_mismatched_sizes: parameters of another shape than the checkpoint's stay as they
                are initialised, and a warning names each with both shapes.
            overrides: fields of the configuration to change, such as `num_labels` or `id2label`.

        Raises:
            DataError: a file is missing or damaged, or keys or shapes do not fit.
            TypeError: an override is no field of the configuration.
            ValueError: overrides contradict each other or the configuration.
        """
        hub = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
        }
        if config is None:
            config = Mask2FormerConfig.from_pretrained(name_or_folder, **hub)
        config = _overridden(config, overrides)
        config.use_pretrained_backbone = False  # all weights are in the checkpoint
        path, weights = read_weights(name_or_folder, **hub)
        try:
            model = cls(config)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"The {CONFIG_NAME} of {name_or_folder} describes no model that can be built: "
                f"{error}"
            ) from error
        expected = {cls.prefix + name: tensor for name, tensor in model.state_dict().items()}
        state = from_huggingface(weights, expected, config, path, ignore_mismatched_sizes)
        state = {name.removeprefix(cls.prefix): tensor for name, tensor in state.items()}
        model.load_state_dict(state, strict=not ignore_mismatched_sizes)
        return model.eval()

    def save_pretrained(self, folder: str | Path, max_shard_size: int | str = "50GB") -> None:
        """Write `config.json` and the weights, readable here and in transformers.

        Args:
            folder: made if need be; older weights in it are replaced.
            max_shard_size: bytes of a file, or a text such as "5GB"; a larger model is written as
                several files and `model.safetensors.index.json`.
        """
        self.config.save_pretrained(folder)
        weights = {self.prefix + name: tensor for name, tensor in self.state_dict().items()}
        save_weights(folder, to_huggingface(weights, self.config), max_shard_size)


def _overridden(config: Mask2FormerConfig, overrides: dict[str, Any]) -> Mask2FormerConfig:
    """A copy of the configuration with other values in some fields."""
    values = config.to_dict()
    unknown = sorted(set(overrides) - set(values) - {"num_labels"})
    if {"dtype", "torch_dtype"} & set(unknown):
        raise TypeError("Weights are loaded in float32; call .to(dtype) on the loaded model.")
    if unknown:
        raise TypeError(f"{unknown[0]!r} is no argument and no field of the configuration.")
    overrides = {name: value for name, value in overrides.items() if value is not None}
    label2id = overrides.pop("label2id", None)
    if label2id is not None:
        overrides.setdefault("id2label", labels_by_id(label2id))
    if "backbone" in overrides:
        values["backbone_config"] = None  # of another backbone
    if overrides.get("num_labels", config.num_labels) != config.num_labels:
        del values["id2label"], values["label2id"], values["thing_label_ids"]  # of other labels
    if "id2label" in overrides:
        values["thing_label_ids"] = None  # of other labels
    changed = Mask2FormerConfig.from_dict(values | overrides)
    if label2id not in (None, changed.label2id):
        raise ValueError("label2id must be the inverse of id2label; leave it out.")
    if overrides.get("num_labels") not in (None, changed.num_labels):
        raise ValueError("num_labels must be the number of labels in id2label; leave it out.")
    return changed


class Mask2FormerModel(_Pretrained):
    """Mask2Former without the class head: raw hidden states and mask predictions.

    Args:
        config: architecture; weights are random until loaded by `from_pretrained`, which takes the
            checkpoints of both models.
    """

    prefix = BASE_PREFIX

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)  # where a backbone writes which of its maps it chose
        self.backbone = make_backbone(self.config)
        self.pixel_decoder = PixelDecoder(self.config, self.backbone.channels)
        self.transformer_decoder = TransformerDecoder(self.config)

    def encode(
        self, pixel_values: Tensor, pixel_mask: Tensor | None
    ) -> tuple[list[Tensor], PixelDecoderOutput]:
        """Backbone feature maps, finest first, and the pixel decoder's output."""
        _check_inputs(pixel_values, pixel_mask, self.config.backbone_config.num_channels)
        pixel_mask = checked_mask(pixel_mask)
        if pixel_mask is not None:
            pixel_values = pad_to_multiple(pixel_values, self.backbone.stride)
            pixel_mask = pad_to_multiple(pixel_mask, self.backbone.stride)
        features = self.backbone(pixel_values, pixel_mask)
        return features, self.pixel_decoder(features, pixel_mask)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Mask2FormerModelOutput | tuple:
        """Arguments are those of `Mask2FormerForUniversalSegmentation.forward`."""
        hidden, attentions, as_dict = _flags(
            self.config, output_hidden_states, output_attentions, return_dict
        )
        features, pixels = self.encode(pixel_values, pixel_mask)
        decoded = self.transformer_decoder(pixels, hidden, attentions)
        states = tuple(s.transpose(0, 1) for s in decoded.states) if hidden else None
        output = Mask2FormerModelOutput(
            transformer_decoder_intermediate_states=states,
            masks_queries_logits=tuple(
                mask_logits(e, pixels.mask_features) for e in decoded.mask_embeddings
            ),
            **_state_fields(features, pixels, decoded, hidden, attentions),
        )
        return output if as_dict else output.to_tuple()


class Mask2FormerForUniversalSegmentation(_Pretrained):
    """Mask2Former for semantic, instance and panoptic segmentation.

    Args:
        config: architecture and loss; weights are random until loaded by `from_pretrained`.
    """

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.model = Mask2FormerModel(config)
        self.config = self.model.config
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        with torch.no_grad():
            nn.init.trunc_normal_(self.class_predictor.weight).mul_(config.init_std)
            nn.init.zeros_(self.class_predictor.bias)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.class_predictor.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self.class_predictor.weight.dtype

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        annotations: list[Annotation] | None = None,
    ) -> Mask2FormerForUniversalSegmentationOutput | tuple:
        """Segment a batch of images, and compute the loss when labels are given.

        Args:
            pixel_values: normalised images (N, C, H, W), floating.
            mask_labels: per image masks (T_i, H, W), the size of pixel_values, of any dtype, with
                values from 0 to 1; bool takes the least memory. Or an index map, integer (H, W): a
                pixel's index into class_labels, -1 for none, -2 for an ignored pixel. In masks an
                ignored pixel has the configuration's ignore_value. Ignored pixels and padding take
                no part in matching and mask losses. T_i may be 0.
            class_labels: per image (T_i,), integer; an annotation of class ignore_value, if that is
                no class of the model, is left out (in an index map its pixels then have none).
            pixel_mask: (N, H, W), non-zero where there is image and 0 where there is padding, which
                must lie at the bottom and right. An image gives the same answer in any batch.
                Default: no padding. With padding, a canvas that is no multiple of the coarsest
                stride is padded to one, and mask logits cover the larger canvas.
            output_hidden_states, output_auxiliary_logits, output_attentions: fill those fields;
                default: as the configuration says.
            return_dict: False for a plain tuple of the fields that are present.
            annotations: per image what `make_annotations` or our own data loader made, in place of
                mask_labels and class_labels. These were checked then and are not checked again.

        Raises:
            ValueError: an input has the wrong shape, or labels do not fit.
        """
        hidden, attentions, as_dict = _flags(
            self.config, output_hidden_states, output_attentions, return_dict
        )
        auxiliary = output_auxiliary_logits
        if auxiliary is None:
            auxiliary = bool(self.config.output_auxiliary_logits)
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("mask_labels and class_labels must be given together.")
        if mask_labels is not None and annotations is not None:
            raise ValueError("Give mask_labels and class_labels, or annotations, but not both.")

        features, pixels = self.model.encode(pixel_values, pixel_mask)
        decoded = self.model.transformer_decoder(pixels, hidden, attentions)
        losses = None
        expected = len(pixel_values), size_of(pixel_values), self.config.num_labels
        if mask_labels is not None and class_labels is not None:
            annotations = make_annotations(
                mask_labels, class_labels, *expected, self.config.ignore_value
            )
        if annotations is not None:
            check_annotations(annotations, *expected)
            losses = self._losses(decoded, pixels, annotations)
        predictions = self._predictions(decoded, pixels, auxiliary)
        output = Mask2FormerForUniversalSegmentationOutput(
            # sum() begins with the integer 0, but there are always losses.
            loss=None if losses is None else sum(losses.values()),  # pyright: ignore[reportArgumentType]
            **predictions[-1],
            auxiliary_logits=predictions[:-1] if auxiliary else None,
            image_sizes=image_sizes(pixel_values, pixels.pixel_mask),
            loss_dict=None if losses is None else {k: v.detach() for k, v in losses.items()},
            **_state_fields(features, pixels, decoded, hidden, attentions),
        )
        return output if as_dict else output.to_tuple()

    def _losses(
        self, decoded: DecoderOutput, pixels: PixelDecoderOutput, annotations: list[Annotation]
    ) -> dict[str, Tensor]:
        annotations = [annotation.to(pixels.mask_features.device) for annotation in annotations]
        if pixels.pixel_mask is not None:
            pairs = zip(annotations, pixels.pixel_mask, strict=True)
            annotations = [annotation.with_padding(mask) for annotation, mask in pairs]
        first = 0 if self.config.use_auxiliary_loss else -1
        return segmentation_losses(
            self.class_predictor(torch.stack(decoded.states[first:])),
            torch.stack(decoded.mask_embeddings[first:]),
            pixels.mask_features,
            annotations,
            self.config,
        )

    def _predictions(
        self, decoded: DecoderOutput, pixels: PixelDecoderOutput, auxiliary: bool
    ) -> list[dict[str, Tensor]]:
        """Class and mask logits of the last prediction, or of all."""
        first = 0 if auxiliary else -1
        return [
            {
                "class_queries_logits": self.class_predictor(state),
                "masks_queries_logits": mask_logits(embedding, pixels.mask_features),
            }
            for state, embedding in zip(
                decoded.states[first:], decoded.mask_embeddings[first:], strict=True
            )
        ]


def image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> list[tuple[int, int, int, int]]:
    """Per image (valid_height, valid_width, padded_height, padded_width) in pixels."""
    height, width = (pixel_values if pixel_mask is None else pixel_mask).shape[-2:]
    if pixel_mask is None:
        return [(height, width, height, width)] * len(pixel_values)
    return [(rows, columns, height, width) for rows, columns in valid_sizes(pixel_mask).tolist()]


def _check_inputs(pixel_values: Tensor, pixel_mask: Tensor | None, channels: int) -> None:
    if pixel_values.dim() != 4 or pixel_values.shape[1] != channels:
        raise ValueError(
            f"pixel_values must be (batch, {channels}, height, width), but has shape "
            f"{tuple(pixel_values.shape)}."
        )
    expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
    if pixel_mask is not None and tuple(pixel_mask.shape) != expected:
        raise ValueError(
            f"pixel_mask must be (batch, height, width) = {expected} as pixel_values is, but has "
            f"shape {tuple(pixel_mask.shape)}."
        )


def _flags(config: Mask2FormerConfig, *given: bool | None) -> tuple[bool, ...]:
    defaults = (config.output_hidden_states, config.output_attentions, config.return_dict)
    return tuple(d if g is None else g for g, d in zip(given, defaults, strict=True))


def _state_fields(
    features: list[Tensor],
    pixels: PixelDecoderOutput,
    decoded: DecoderOutput,
    hidden: bool,
    attentions: bool,
) -> dict[str, Any]:
    """The fields that both models' outputs share."""
    return {
        "encoder_last_hidden_state": features[-1],
        "pixel_decoder_last_hidden_state": pixels.mask_features,
        "transformer_decoder_last_hidden_state": decoded.last,
        "encoder_hidden_states": tuple(features) if hidden else None,
        "pixel_decoder_hidden_states": tuple(pixels.levels) if hidden else None,
        "transformer_decoder_hidden_states": tuple(decoded.hidden_states) if hidden else None,
        "attentions": tuple(decoded.attentions) if attentions else None,
    }
