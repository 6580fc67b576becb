"""Does an instance follow the newest topology that it can, and keep it otherwise?"""

import os

import pytest
from shoal.internal.v1.topology_pb2 import PublishTopologyRequest, Topology
from shoal.rpc.topology import RefusedTopologyError, TopologyFollower


class Service:
    def __init__(self, instance_id="encoder-0"):
        self.followed = []
        self.refusal = ""
        self.follower = TopologyFollower(instance_id, follow=self._follow, describe=self._describe)

    def _follow(self, topology):
        if self.refusal:
            raise RefusedTopologyError(self.refusal)
        self.followed.append(topology.epoch)

    def _describe(self, response):
        response.model = "m@1"

    async def publish(self, epoch, instance_id="encoder-0"):
        request = PublishTopologyRequest(topology=Topology(epoch=epoch), instance_id=instance_id)
        return await self.follower.PublishTopology(request, None)


@pytest.fixture
def service():
    return Service()


async def test_newer_topologies_are_followed_once(service):
    for epoch in (1, 1, 3, 2, 3):
        answer = await service.publish(epoch)
        assert answer.refusal == ""
    assert service.followed == [1, 3]
    assert answer.epoch == 3


async def test_the_answer_says_who_and_since_when(service):
    first, second = await service.publish(1), await service.publish(2)
    assert (first.pid, first.model) == (os.getpid(), "m@1")
    assert first.start_time == second.start_time


async def test_a_refused_topology_changes_nothing_and_may_be_sent_again(service):
    await service.publish(1)
    service.refusal = "cannot load"
    answer = await service.publish(2)
    assert (answer.epoch, answer.refusal) == (1, "cannot load")
    service.refusal = ""
    assert (await service.publish(2)).epoch == 2
    assert service.followed == [1, 2]


async def test_a_topology_for_another_instance_is_refused(service):
    answer = await service.publish(5, instance_id="encoder-1")
    assert "encoder-0, not encoder-1" in answer.refusal
    assert service.followed == []


async def test_an_instance_without_an_id_takes_any():
    service = Service(instance_id="")
    assert (await service.publish(4, instance_id="whatever")).epoch == 4


async def test_a_follower_needs_neither_callback():
    follower = TopologyFollower("x")
    assert follower.accept(Topology(epoch=7)) == ""
    assert follower.topology.epoch == 7
