"""Ray Serve's side of `prefix_affinity`: a request router (imports Ray)."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import RequestRouter

from fastsnn_serve.http.prefix_affinity import PrefixHomes


class PrefixRouter(RequestRouter):
    """Routes a request to the replica that has read most of its prompt, unless that one is much busier than others.

    Requests carry their blocks as the argument `blocks`.
    """

    def initialize_state(self, **options: Any) -> None:
        """Called by Ray with `request_router_kwargs`: `slack` of `PrefixHomes`."""
        self.affinity = PrefixHomes(**options)
        self.members: set[Any] = set()

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Ranks of one replica each; a full one is passed over by Ray."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when all of them are full
        members = {replica.replica_id for replica in candidate_replicas}
        if self.members - members:
            self.affinity.keep(members)
        self.members = members
        load = {one: self.replica_queue_len_cache.get(one) or 0 for one in (r.replica_id for r in candidate_replicas)}
        blocks = [] if pending_request is None else pending_request.kwargs.get("blocks", [])
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        return [[by_id[one]] for one in self.affinity.order(blocks, load)]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """Note who reads this prompt."""
        self.affinity.sent(pending_request.kwargs.get("blocks", []), replica_id)
