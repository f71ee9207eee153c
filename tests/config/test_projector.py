import pytest

from megatron_llava.config.projector import ProjectorShape, parse_projector_type


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("linear", ProjectorShape(linears=1, activation="gelu", in_sequence=False)),
        ("mlp1x_gelu", ProjectorShape(linears=1, activation="gelu")),
        ("mlp2x_relu", ProjectorShape(linears=2, activation="relu")),
        ("mlp12x_gelu", ProjectorShape(linears=12, activation="gelu")),
        ("mlp2x_res3x_gelu", ProjectorShape(linears=2, activation="gelu", blocks=3)),
    ],
)
def test_names_of_projectors(name, shape):
    assert parse_projector_type(name) == shape


@pytest.mark.parametrize(
    "name", ["identity", "pooler", "mlp0x_gelu", "mlp2x_silu", "mlpx_gelu", ""]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="--mm-projector-type .*expected linear, mlpNx_gelu"):
        parse_projector_type(name)
