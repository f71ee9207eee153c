"""LlavaModel: vision tower, projector, visual packing and core's GPTModel.

Shape suffixes: V views, T patches per view, K values of a patch, D tower width, H language width,
F = V * T feature rows, N text rows, R packed rows (of this rank under context and sequence
parallel), L loss rows, W vocabulary columns of this tensor-parallel rank, B = 1.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.packed_batch import FeatureExchange, TensorBatch
from megatron_llava.models.alignment import AlignmentLoss
from megatron_llava.models.feature_attention import FeatureAttention
from megatron_llava.models.image_rows import add_image_rows, position_rows, special_rows
from megatron_llava.models.projector import DeepProjector, Projector
from megatron_llava.models.specs import PackedSequences
from megatron_llava.models.temporal_encoder import TemporalEncoder
from megatron_llava.models.tower import Tower
from megatron_llava.ops.exchange import exchange_rows
from megatron_llava.ops.fp8_delayed import DelayedScales
from megatron_llava.ops.key_value_cache import KeyValueCache
from megatron_llava.ops.tiles_to_patches import pixel_table, tiles_to_patches
from megatron_llava.ops.visual_pack import PackPlan, visual_pack


class LlavaModel(MegatronModule):
    """A LLaVA-NeXT model over packed batches.

    The vision tower, projector and the learned rows of images (``image_newline``, ...) live on the
    first pipeline stage only. Every microbatch runs the tower, on a dummy view when it has no
    image, so that every data-parallel rank produces every gradient in every microbatch and
    overlapped reductions never wait for one.

    Args:
        config: core's configuration of the language model.
        language_model: core's GPTModel of this pipeline stage.
        vocab_size: entries of the vocabulary before padding; padded columns never take part in a
            softmax.
        vision_model: the tower, None except on the first stage.
        vision_projection: the projector, None except on the first stage.
        settings: how pixels are normalised, and which learned rows images have.
        view_group: the ranks that share the views of a pack, None where each has all of its packs.
        fp8_scales: of the decoder's linears, with emulated FP8 and delayed scaling.
        alignment: the loss that stage 1 may add while training, None without one.
        cross_image_attention: what --cross-image-attention adds, None elsewhere and without it.
        temporal_encoder: what --temporal-encoder-layers adds, likewise.
    """

    def __init__(
        self,
        config: TransformerConfig,
        language_model: GPTModel,
        vocab_size: int,
        vision_model: Tower | None,
        vision_projection: Projector | DeepProjector | None,
        settings: ImageSettings,
        view_group: dist.ProcessGroup | None = None,
        fp8_scales: DelayedScales | None = None,
        alignment: AlignmentLoss | None = None,
        cross_image_attention: FeatureAttention | None = None,
        temporal_encoder: TemporalEncoder | None = None,
    ) -> None:
        super().__init__(config=config)
        self.language_model = language_model
        self.pre_process = language_model.pre_process
        self.post_process = language_model.post_process
        self.model_type = language_model.model_type
        # Core looks these up on the outermost module to reduce tied embeddings across stages.
        self.share_embeddings_and_output_weights = (
            language_model.share_embeddings_and_output_weights
        )
        self.vocab_size = vocab_size
        self.image_settings = settings
        self.view_group = view_group
        self.fp8_scales = fp8_scales
        self.alignment = alignment
        if self.pre_process:
            assert vision_model is not None and vision_projection is not None
            self.vision_model = vision_model
            # On the device from the start: a step waits for no copy from the host.
            table = pixel_table(settings.image_mean, settings.image_std, config.params_dtype)
            self.register_buffer("pixel_table", table, persistent=False)
            self.vision_projection = vision_projection
            if cross_image_attention is not None:
                self.cross_image_attention = cross_image_attention
            if temporal_encoder is not None:
                self.temporal_encoder = temporal_encoder
            add_image_rows(self, settings, config.hidden_size, config.params_dtype)
        if self.post_process:
            # Rows are gathered before the few that carry a loss are picked, not by the output
            # layer.
            output_layer = language_model.output_layer
            output_layer.sequence_parallel = False
            output_layer.allreduce_dgrad = config.tensor_model_parallel_size > 1

    def shared_embedding_or_output_weight(self) -> torch.Tensor | None:
        """The tied weight of this stage (core's protocol for tied embeddings)."""
        return self.language_model.shared_embedding_or_output_weight()

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Take the hidden states [R, 1, H] of the stage before (core's pipeline protocol)."""
        self.language_model.set_input_tensor(input_tensor)

    def encode_images(
        self, tiles: torch.Tensor, exchange: FeatureExchange | None = None
    ) -> torch.Tensor:
        """Normalise, encode and project uint8 tiles [V, 3, S, S] to feature rows [F, H].

        Args:
            exchange: where other ranks have a share of the views: which encoded rows go to whom.
                The result are then the rows that this rank received.
        """
        patches_VTK = tiles_to_patches(tiles, self.pixel_table, self.vision_model.patch_size)
        frozen = not any(p.requires_grad for p in self.vision_model.parameters())
        with torch.no_grad() if frozen else contextlib.nullcontext():
            features_VTD = self.vision_model(patches_VTK)
        features_FD = features_VTD.flatten(0, 1)
        if exchange is not None:
            features_FD = exchange_rows(
                features_FD.index_select(0, exchange.send_rows),
                exchange.send_counts,
                exchange.receive_counts,
                self.view_group,
            )
        return self.vision_projection(features_FD)

    def visual_features(self, batch: TensorBatch) -> torch.Tensor:
        """The feature rows [F, H] that ``visual_pack`` takes: encoded, projected, and where the
        model does so, having seen the other frames of their video and images of their sample;
        behind them the largest of some, where the batch says of which."""
        features_FH = self.encode_images(batch.tiles, batch.exchange)
        encoder = getattr(self, "temporal_encoder", None)
        attention = getattr(self, "cross_image_attention", None)
        tokens = len(features_FH) // max(batch.num_views, 1)
        if encoder is not None:
            features_FH = encoder(features_FH, batch.videos, tokens)
        if attention is not None:
            of_samples = [views * tokens for views in batch.sample_views if views]
            features_FH = attention(features_FH, of_samples)
        if batch.max_taps is None:
            return features_FH
        largest_MH = features_FH[batch.max_taps].max(dim=1).values
        return torch.cat((features_FH, largest_MH))

    def embed(self, batch: TensorBatch, features_FH: torch.Tensor | None = None) -> torch.Tensor:
        """The input rows of the decoder [R, 1, H]: text embeddings and visual features, packed.

        Args:
            features_FH: what ``visual_features`` gave for the batch, if that was done before.
        """
        if features_FH is None:
            features_FH = self.visual_features(batch)
        text_NH = self.language_model.embedding.word_embeddings(batch.token_ids[None])[0]
        packed_RH = visual_pack(
            features_FH,
            special_rows(self, self.image_settings),
            text_NH,
            PackPlan.of(batch),
            position_rows(self),
        )
        if self.alignment is not None and self.training:
            with torch.no_grad():
                caption_LH = self.language_model.embedding.word_embeddings(batch.loss_labels[None])
            packed_RH = self.alignment.attach(
                packed_RH, len(features_FH), caption_LH[0], batch, self.config.grad_scale_func
            )
        rows_RBH = packed_RH[:, None]
        if self.config.sequence_parallel:
            rows_RBH = tensor_parallel.scatter_to_sequence_parallel_region(rows_RBH)
        return rows_RBH

    def forward(self, batch: TensorBatch) -> torch.Tensor:
        """Run one pack through this stage.

        Returns:
            On the last stage the loss of each loss row, float32 [L] (of a pack without loss rows:
            one zero). Elsewhere the hidden states [R, 1, H].
        """
        if self.alignment is not None and self.alignment.alone and self.training:
            return self.embed(batch).float().sum()[None] * 0.0
        hidden_RBH = self.decode(batch)
        if not self.post_process:
            return hidden_RBH
        rows, labels, scale = batch.loss_rows, batch.loss_labels, 1.0
        if not rows.numel():
            # Collectives and gradients of the output layer must take place on this rank as well.
            rows, labels, scale = rows.new_zeros(1), labels.new_zeros(1), 0.0
        logits_LW = self.logits(hidden_RBH, rows)
        losses_L = tensor_parallel.vocab_parallel_cross_entropy(logits_LW.float(), labels)
        return losses_L * scale

    def decode(
        self,
        batch: TensorBatch,
        features_FH: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        """Hidden states [R, 1, H] after this stage's decoder layers.

        Args:
            batch, features_FH: as ``embed``.
            cache: is filled with the keys and values, for ``decode_next``.
        """
        decoder_input = self.embed(batch, features_FH) if self.pre_process else None
        if decoder_input is not None and self.config.recompute_granularity == "full":
            # Core recomputes a layer in the backward only if the input of its forward has one, and
            # adapters may be the first that learns.
            decoder_input.requires_grad_(decoder_input.requires_grad or torch.is_grad_enabled())
        language_model = self.language_model
        rotary_SBGD = language_model.rotary_pos_emb(batch.max_seqlen, packed_seq=True)
        packed = PackedSequences(
            qkv_format="thd",
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            row_order=batch.row_order,
            cache=cache,
        )
        if self.fp8_scales is not None:
            packed.fp8_pass = self.fp8_scales.begin_forward()
        if self.config.apply_rope_fusion:
            packed.cu_seqlens_q = packed.cu_seqlens_kv = batch.cu_seqlens
            packed.max_seqlen_q = packed.max_seqlen_kv = batch.max_seqlen
            rotary = rotary_SBGD
        else:
            rotary = rotary_SBGD[:, 0].index_select(0, batch.position_ids)
        hidden_RBH = language_model.decoder(
            hidden_states=decoder_input,
            attention_mask=None,
            rotary_pos_emb=rotary,
            packed_seq_params=packed,
        )
        if self.fp8_scales is not None:
            self.fp8_scales.end_forward(packed.fp8_pass)
        return hidden_RBH

    def decode_next(self, tokens_R: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        """Hidden states [R, 1, H] of one more row of each sequence that ``cache`` holds.

        Args:
            tokens_R: int64, the row's token in each of the sequences, and padding behind.
        """
        language_model = self.language_model
        rows_RBH = language_model.embedding.word_embeddings(tokens_R[None])[0][:, None]
        if self.config.sequence_parallel:
            rows_RBH = tensor_parallel.scatter_to_sequence_parallel_region(rows_RBH)
        positions_P = cache.next_positions()
        rotary_SBGD = language_model.rotary_pos_emb(cache.longest, packed_seq=True)
        positions_R = F.pad(positions_P, (0, len(tokens_R) - len(positions_P)))
        return language_model.decoder(
            hidden_states=rows_RBH,
            attention_mask=None,
            rotary_pos_emb=rotary_SBGD[:, 0].index_select(0, positions_R),
            packed_seq_params=PackedSequences(qkv_format="thd", cache=cache),
        )

    def logits(self, hidden_RBH: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits [L, W] of the given rows; columns beyond the vocabulary are the minimum."""
        if self.config.sequence_parallel:
            hidden_RBH = tensor_parallel.gather_from_sequence_parallel_region(
                hidden_RBH, tensor_parallel_output_grad=False
            )
        weight = None
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        selected_LBH = hidden_RBH.index_select(0, rows)
        logits_LBW, _ = self.language_model.output_layer(selected_LBH, weight=weight)
        logits_LW = logits_LBW[:, 0]
        columns = logits_LW.shape[1]
        first = columns * parallel_state.get_tensor_model_parallel_rank()
        padding = torch.arange(first, first + columns, device=rows.device) >= self.vocab_size
        return logits_LW.masked_fill(padding, torch.finfo(logits_LW.dtype).min)
