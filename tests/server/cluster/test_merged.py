"""Views of several replicas as one."""

from server.cluster.merged_json import merged


def test_counts_are_summed_ratios_averaged_and_places_and_sizes_kept() -> None:
    views = [
        {"layer": 3, "bytes": 9, "tokens": 2, "hit_ratio": 0.5},
        {"layer": 3, "bytes": 9, "tokens": 5, "hit_ratio": 1.0},
    ]
    assert merged(views) == {"layer": 3, "bytes": 9, "tokens": 7, "hit_ratio": 0.75}


def test_seconds_of_stalls_and_steps_are_averaged_so_that_shares_of_time_are_those_of_a_replica() -> None:
    views = [{"stall_seconds": 3.0, "step_seconds": 4.0}, {"stall_seconds": 1.0, "step_seconds": 2.0}]
    assert merged(views) == {"stall_seconds": 2.0, "step_seconds": 3.0}


def test_the_size_of_a_page_is_that_of_each_replica() -> None:
    assert merged([{"page_bytes": 4, "loads": 1}, {"page_bytes": 4, "loads": 2}]) == {"page_bytes": 4, "loads": 3}


def test_an_expert_is_where_the_fastest_replica_has_it() -> None:
    assert merged([{"residency": "disk"}, {"residency": "host"}]) == {"residency": "host"}


def test_tiers_of_memory_are_added_up_and_the_disk_is_the_models() -> None:
    tiers = {"host": {"num_experts": 8}, "disk": {"num_experts": 64, "total_bytes": 640}}
    assert merged([tiers, tiers]) == {**tiers, "host": {"num_experts": 16}}


def test_lists_are_merged_item_by_item_if_all_have_as_many() -> None:
    assert merged([[1, 2], [3, 4]]) == [4, 6]
    assert merged([[1, 2], [3]]) == [1, 2]


def test_what_one_replica_does_not_know_is_taken_from_the_others() -> None:
    assert merged([{"download": None}, {"download": {"done_bytes": 4}}]) == {"download": {"done_bytes": 4}}
