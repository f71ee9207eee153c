"""The planned memory of a rank is what its tensors take: parameters, gradient buffers, optimizer
state, and the storages that autograd keeps from forward to backward, in real training steps."""

from dataclasses import replace
from functools import cache

import pytest
from memory_jobs import memory_of_layouts
from tiny_model import PATCH, TILE, png, tiny_config, tiny_sample

from megatron_llava.config.model_yaml import model_to_yaml
from megatron_llava.convert.hf_tower_rules import hf_tower_fields
from megatron_llava.data.store_writer import StoreWriter
from megatron_llava.data.stored_video import pack_frames


def tiny_hf_tower(kind: str, **settings: object) -> str:
    """Flags of a tower that transformers computes, of the sizes that ``counted`` has."""
    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4}
    sizes |= {"image_size": TILE, "patch_size": PATCH, **settings}
    values = hf_tower_fields(kind, sizes)
    flags = {name: str(value).replace(" ", "") for name, value in values.items()}
    return " ".join(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())


TP2, PP2 = "--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=2"
CP2, SP, DATA = "--context-parallel-size=2", "--sequence-parallel", "--vision-parallel=data"
BF16, DISTRIBUTED = "--bf16", "--use-distributed-optimizer"
TIED = "--no-untie-embeddings-and-output-weights"
BUCKETS = "--overlap-grad-reduce --ddp-bucket-size=20000"
UNIFORM = "--recompute-granularity=full --recompute-method=uniform --recompute-num-layers"
BLOCK = "--recompute-granularity=full --recompute-method=block --recompute-num-layers"
SIGLIP = "--vision-model-type=siglip --vision-hidden-act=gelu_pytorch_tanh"
DINOV2 = tiny_hf_tower("dinov2", mlp_ratio=3)
AIMV2 = tiny_hf_tower("aimv2", intermediate_size=96)
CROSS_IMAGE, FRAMES = "--cross-image-attention", "--temporal-encoder-layers=2"
MAX = "--mm-spatial-pool-mode=max"
ALIGN = "--align-loss-coeff=1 --mm-tunable-parts=mm_mlp_adapter"

# By the ranks that they are started with.
LAYOUTS = {
    1: [
        "",
        BF16,
        "--recompute-activations --recompute-vision",
        f"{UNIFORM}=2 --recompute-vision",
        f"{BLOCK}=2 --recompute-vision",
        f"{BLOCK}=4 {BF16}",
        "--mm-tunable-parts=mm_mlp_adapter",
        "--mm-tunable-parts=mm_vision_tower",
        f"--mm-tunable-parts=mm_language_model {BF16}",
        f"--num-query-groups=8 {TIED}",
        f"{SIGLIP} --mm-projector-type=mlp3x_relu",
        f"--lora-rank=4 --lora-dropout=0.1 {BF16}",
        "--lora-rank=4 --lora-dropout=0 --recompute-activations",
        CROSS_IMAGE,
        f"{CROSS_IMAGE} --mm-tunable-parts=mm_vision_tower {BF16}",
        FRAMES,
        f"{FRAMES} {CROSS_IMAGE} {BF16} --mm-tunable-parts=mm_mlp_adapter",
        ALIGN,
        f"{ALIGN} {BF16} --align-loss-pooling=token --text-loss-coeff=0",
        DINOV2,
        f"{DINOV2} {BF16} {UNIFORM}=2 --recompute-vision",
        f"{AIMV2} {BF16}",
        f"{AIMV2} --mm-tunable-parts=mm_vision_tower",
        f"{DINOV2} --mm-tunable-parts=mm_vision_tower",
        MAX,
        f"{MAX} {BF16} --mm-tunable-parts=mm_mlp_adapter",
        f"{MAX} --mm-tunable-parts=mm_language_model",
    ],
    2: [
        f"{TP2} {SP} {BF16}",
        f"{TP2} {SP} {UNIFORM}=1",
        f"{TP2} {DATA}",
        f"{TP2} {FRAMES} {CROSS_IMAGE}",
        CP2,
        PP2,
        f"{PP2} --num-virtual-stages-per-pipeline-rank=2",
        f"{PP2} {UNIFORM}=1",
        f"{BF16} {DISTRIBUTED} {BUCKETS}",
        DISTRIBUTED,
        f"{TP2} {SP} {BF16} --lora-rank=4 --lora-dropout=0",
        f"{TP2} --lora-rank=4 --lora-target-modules=q_proj,v_proj,down_proj",
        f"{CP2} {MAX}",
    ],
    4: [
        f"{TP2} {SP} {PP2}",
        f"{TP2} {CP2} {SP}",
        "--pipeline-model-parallel-size=4 --recompute-activations",
        f"{PP2} {DISTRIBUTED} {BF16} {TIED}",
        f"{CP2} {DISTRIBUTED} {UNIFORM}=1 --lora-rank=8",
    ],
}
PACKED = "--lora-rank=4 --lora-dropout=0 --load-in-4bit"
DOUBLE = "--bnb-4bit-use-double-quant"
IN_4_BITS = {
    1: [PACKED, f"{PACKED} {DOUBLE} {BF16} --recompute-activations"],
    2: [f"{PACKED} {TP2} {SP} {BF16}", f"{PACKED} {DOUBLE} {PP2} {UNIFORM}=1 {BF16}"],
}
PACK_OF_ONE_SAMPLE = 240


@pytest.fixture(scope="module")
def counted(pool, tmp_path_factory):
    """The results of all layouts of so many ranks, trained when first asked for."""
    folder = tmp_path_factory.mktemp("memory")
    config = tiny_config(
        num_layers=4,
        hidden_size=64,
        ffn_hidden_size=176,
        num_attention_heads=8,
        vocab_size=300,
        vision_num_layers=4,
        vision_hidden_size=32,
        vision_ffn_hidden_size=96,
        vision_num_attention_heads=4,
    )
    (folder / "tiny.yaml").write_text(model_to_yaml(config))
    # Attention on a CPU pads some packs of several samples; these hold one each.
    images = tiny_sample([(84, 84)] * 12, 100, 7)
    video = replace(
        tiny_sample([(28, 28)], 100, 7),
        images=(pack_frames([png((28, 28), number) for number in range(30)]),),
        image_sizes=((30, 0),),
    )
    for name, sample in (("images", images), ("video", video)):
        with StoreWriter(
            folder / name, tokenizer_fingerprint="none", conversation_template="v1"
        ) as store:
            for number in range(8):
                arguments = sample.token_ids, sample.label_mask, sample.images, sample.image_sizes
                store.add(*arguments, str(number))
            store.finish()

    @cache
    def count(ranks: int, in_4_bits: bool = False):
        common = (
            f"--device=cpu --config={folder / 'tiny.yaml'} "
            f"--seq-length={PACK_OF_ONE_SAMPLE} --global-batch-size={1 if ranks == 1 else 4} "
            "--train-iters=5 --lr=1e-3 --num-workers=0 "
        )
        chosen = IN_4_BITS if in_4_bits else LAYOUTS
        layouts = []
        for layout in chosen[ranks]:
            path = folder / ("video" if FRAMES in layout or MAX in layout else "images")
            layouts.append(f"{common} --data-path={path} {layout}".split())
        return pool.run(memory_of_layouts, layouts, world_size=ranks)

    return count


@pytest.mark.proves("E11")
@pytest.mark.parametrize(
    ("ranks", "number", "layout"),
    [(r, n, layout) for r, layouts in LAYOUTS.items() for n, layout in enumerate(layouts)],
)
def test_planned_memory_is_what_was_counted(counted, ranks, number, layout):
    assert_planned(counted(ranks), number)


@pytest.mark.parametrize(("ranks", "number"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_planned_memory_is_what_was_counted_in_4_bits(counted, ranks, number):
    pytest.importorskip("bitsandbytes")
    assert_planned(counted(ranks, in_4_bits=True), number)


def assert_planned(of_ranks, number):
    for of_rank in of_ranks:
        result = of_rank[number]
        for kind, found in result["counted"].items():
            # The distributed optimizer's last rank has the padding of its buffer.
            assert result["predicted"][kind] == pytest.approx(found, rel=0.02), kind


def test_frozen_parts_have_neither_gradients_nor_state(counted):
    whole, projector = (counted(1)[0][number]["predicted"] for number in (0, 6))
    assert projector["weights"] == whole["weights"]
    assert 0 < projector["gradients"] < whole["gradients"] / 20
    assert 0 < projector["optimizer"] < whole["optimizer"] / 20
