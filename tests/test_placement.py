from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

from speechfuse.placement import Place, trainer_options
from speechfuse.ranks import Rank


def test_one_strategy_keeps_all_weights_and_the_other_a_part():
    kinds = {name: trainer_options(Rank(0, 2), name)["strategy"] for name in ("ddp", "fsdp")}
    assert type(kinds["ddp"]) is DDPStrategy
    assert isinstance(kinds["fsdp"], FSDPStrategy)


def test_the_processes_of_a_machine_are_the_devices_of_a_node():
    rank = Rank(5, 8, 29500, address="a1", node=1, local=1)
    rank.per_node = 4
    options = trainer_options(rank)
    assert (options["devices"], options["num_nodes"]) == (4, 2)
    place = options["strategy"].cluster_environment
    assert isinstance(place, Place)
    assert (place.global_rank(), place.world_size()) == (5, 8)
    assert (place.node_rank(), place.local_rank()) == (1, 1)
    assert (place.main_address, place.main_port) == ("a1", 29500)
