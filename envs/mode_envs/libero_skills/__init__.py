"""Skills that solve LIBERO's tasks from the geometry of their scenes.

`Scene` rebuilds a scene from an observation; grasps, placements and ways to move a joint are found in it by
looking for what is reachable and free of collisions; skills are generators of actions; `plan` orders them by
what the goal's predicates need.
"""
