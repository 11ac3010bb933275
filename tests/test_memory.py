import pickle

import torch

from speechfuse.memory import SMALL, Pool


def test_memory_is_used_again_once_nothing_refers_to_it():
    pool = Pool()
    first = pool.empty(2, SMALL)
    place = first.data_ptr()
    layer = first[1]
    del first
    other = pool.empty(2, SMALL)
    assert other.data_ptr() != place  # a layer of the first one is still in use
    del layer
    assert pool.empty(SMALL).data_ptr() == place  # also for something smaller


def test_what_a_gradient_needs_stays_as_it_was():
    pool = Pool()
    weight = torch.ones((), requires_grad=True)
    batch = pool.empty(SMALL).fill_(2.0)
    total = (weight * batch).sum()
    del batch
    pool.empty(SMALL).fill_(3.0)
    total.backward()
    assert weight.grad == 2 * SMALL


def test_blocks_do_not_pile_up():
    pool = Pool(keep=2)
    held = [pool.empty(SMALL + i) for i in range(5)]
    places = [one.data_ptr() for one in held]
    del held
    again = [pool.empty(SMALL + 4), pool.empty(SMALL + 3)]
    assert [one.data_ptr() for one in again] == places[:2:-1]
    assert not pool._free


def test_a_block_too_small_makes_way_for_one_that_fits():
    pool = Pool(keep=3)
    for size in (SMALL, 2 * SMALL, 3 * SMALL):
        pool.empty(size)
    assert [len(block) for block in pool._free] == [3 * SMALL]


def test_tensors_are_contiguous_of_their_shape_and_can_be_sent():
    pool = Pool()
    pool.empty(4, SMALL)
    tensor = pool.empty(3, 2, SMALL // 2).fill_(1.5)
    assert tensor.is_contiguous()
    assert tensor.shape == (3, 2, SMALL // 2)
    assert pickle.loads(pickle.dumps(tensor)).equal(tensor)
    assert pool.empty(2, 3).shape == (2, 3)
