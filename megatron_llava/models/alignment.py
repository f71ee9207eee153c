"""The alignment loss of stage 1: image features come near the embeddings of their caption.

L_align = MSE(proj(v), embed(caption)). Both sides are the means over a sample: of its image rows as
the decoder sees them (merged and pooled, learned rows left out), and of the embeddings of its
supervised tokens. The gradient reaches image features only; embeddings are a constant target.

Shape suffixes: R packed rows of this rank, L loss rows of this rank, n samples of the pack, H
language width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region

from megatron_llava.config.training import TrainingConfig
from megatron_llava.data.packed_batch import TensorBatch


class AlignmentLoss:
    """What is added to the loss of a pack on the first pipeline stage, and a running sum of it.

    A sample's alignment weighs in the global batch as its tokens do (--loss-reduction), so that
    the loss of a token is -log p + coefficient * MSE of its sample; without an image that is 0.

    Args:
        training: --align-loss-coeff, --align-loss-pooling, --loss-reduction.
        context_group: ranks that share the positions of a pack, None where each has all of it.
        alone: whether the decoder is left out while training, see ``RunConfig.aligns_only``.
    """

    def __init__(
        self, training: TrainingConfig, context_group: dist.ProcessGroup | None, *, alone: bool
    ) -> None:
        self.coefficient = training.align_loss_coeff
        self.by_token = training.align_loss_pooling == "token"
        self.alone = alone
        self._reduction = training.loss_reduction
        self._group = context_group
        self._sum = torch.zeros((), dtype=torch.float64)

    def take(self) -> torch.Tensor:
        """float64 [], the sum since the last call, as ``training.step.reduced_loss`` sums; of the
        ranks that share a pack, one has it."""
        taken, self._sum = self._sum, torch.zeros((), dtype=torch.float64)
        return taken

    def attach(
        self,
        rows_RH: torch.Tensor,
        num_features: int,
        caption_LH: torch.Tensor,
        batch: TensorBatch,
        grad_scale: Any = None,
    ) -> torch.Tensor:
        """The rows as they are, whose backward also gives the gradient of this loss.

        Args:
            rows_RH: input rows of the decoder, with padding.
            num_features: F, rows of the table that are image features.
            caption_LH: the embeddings of ``batch.loss_labels``.
            grad_scale: core's function that scales a loss, None for none.
        """
        visual_R = ((batch.weights != 0) & (batch.taps < num_features)).any(1)
        mse_n = self._of_samples(rows_RH, visual_R, caption_LH.detach().float(), batch)
        tokens_n = batch.sample_loss_tokens.float()
        if self._reduction == "sample":
            weights_n = (tokens_n > 0).float()
        elif self._reduction == "microbatch-mean":
            weights_n = tokens_n / tokens_n.sum().clamp(min=1)
        else:
            weights_n = tokens_n
        loss = (weights_n * mse_n).sum()
        if batch.counts_samples:
            self._sum = self._sum.to(loss.device) + loss.detach().double()
        loss = loss * self.coefficient
        return _WithLoss.apply(rows_RH, loss if grad_scale is None else grad_scale(loss))

    def _of_samples(
        self,
        rows_RH: torch.Tensor,
        visual_R: torch.Tensor,
        caption_LH: torch.Tensor,
        batch: TensorBatch,
    ) -> torch.Tensor:
        """float32 [n], the mean squared difference of each sample, 0 without image or caption."""
        number_n1 = torch.arange(batch.num_samples, device=rows_RH.device)[:, None]
        image_nR = ((self._samples_of_rows(batch) == number_n1) & visual_R).float()
        text_nL = (batch.loss_samples == number_n1).float()
        images = torch.cat((image_nR @ rows_RH.float(), image_nR.sum(1, keepdim=True)), 1)
        texts = torch.cat((text_nL @ caption_LH, text_nL.sum(1, keepdim=True)), 1)
        if self._group is not None:
            # Each rank gets the whole sums, and gives its own rows the gradient of them.
            both = torch.stack((images, texts))
            images, texts = reduce_from_tensor_model_parallel_region(both, self._group)
        image_counts_n, text_counts_n = images[:, -1], texts[:, -1]
        means_nH = images[:, :-1] / image_counts_n.clamp(min=1)[:, None]
        targets_nH = texts[:, :-1] / text_counts_n.clamp(min=1)[:, None]
        mse_n = (means_nH - targets_nH).square().mean(1)
        if self.by_token:
            rows_L = _partners(visual_R, image_counts_n, text_counts_n, batch.loss_samples)
            pairs_LH = rows_RH.index_select(0, rows_L).float() - caption_LH
            by_token_n = text_nL @ pairs_LH.square().mean(1) / text_counts_n.clamp(min=1)
            mse_n = torch.where(image_counts_n == text_counts_n, by_token_n, mse_n)
        return mse_n * ((image_counts_n > 0) & (text_counts_n > 0))

    def _samples_of_rows(self, batch: TensorBatch) -> torch.Tensor:
        """[R], the sequence of the pack that each row is in; the padding may be one of its own."""
        rows = len(batch.taps)
        if self._group is None:
            positions_R = torch.arange(rows, device=batch.taps.device)
        else:
            assert batch.row_order is not None
            positions_R = batch.row_order[rows * self._group.rank() :][:rows]
        return torch.searchsorted(batch.cu_seqlens[1:].long(), positions_R, right=True)


def _partners(
    visual_R: torch.Tensor,
    image_counts_n: torch.Tensor,
    text_counts_n: torch.Tensor,
    samples_L: torch.Tensor,
) -> torch.Tensor:
    """[L], for the k-th caption token of a sample its k-th image row; any row where it has none.

    Asks the host for nothing.
    """
    images_before_n = (image_counts_n.cumsum(0) - image_counts_n).long()
    texts_before_n = (text_counts_n.cumsum(0) - text_counts_n).long()
    number_L = torch.arange(len(samples_L), device=samples_L.device)
    place_L = images_before_n[samples_L] + number_L - texts_before_n[samples_L] + 1
    rows_L = torch.searchsorted(visual_R.cumsum(0), place_L)
    return rows_L.clamp(max=len(visual_R) - 1)


class _WithLoss(torch.autograd.Function):
    """Rows unchanged; in the backward the loss has a gradient of one beside theirs.

    So the first pipeline stage adds to the gradient what the last one knows nothing of.
    """

    @staticmethod
    def forward(ctx: Any, rows_RH: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(loss)
        return rows_RH.view_as(rows_RH)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (loss,) = ctx.saved_tensors
        return gradients[0], torch.ones_like(loss)
