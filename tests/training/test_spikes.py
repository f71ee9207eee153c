from megatron_llava.training.spikes import SpikeGuard


def test_the_limit_is_a_multiple_of_the_median_of_the_last_losses():
    guard = SpikeGuard(2.0, 3)
    for loss in (9.0, 1.0):
        guard.add(loss)
        assert guard.limit == float("inf")
    guard.add(2.0)
    assert guard.limit == 4.0
    guard.add(5.0)
    assert guard.losses == [1.0, 2.0, 5.0] and guard.limit == 4.0
    guard.add(7.0)
    assert guard.limit == 10.0


def test_a_resumed_guard_goes_on_where_it_was():
    guard = SpikeGuard(2.0, 3, [1.0, 2.0, 5.0])
    assert guard.limit == 4.0
    assert SpikeGuard(2.0, 2, guard.losses).limit == 7.0
    assert SpikeGuard(2.0, 4, guard.losses).limit == float("inf")
