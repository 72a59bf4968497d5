"""What each task asks for, in natural language.

The table also names the tasks, so that they can be listed where no simulator is installed.
"""

from __future__ import annotations

METAWORLD_INSTRUCTIONS: dict[str, str] = {
    "assembly-v3": "Pick up the wrench-shaped nut and place its ring over the peg.",
    "basketball-v3": "Pick up the basketball and drop it through the hoop.",
    "bin-picking-v3": "Move the cube from the left bin into the right bin.",
    "box-close-v3": "Pick up the lid and put it on the box.",
    "button-press-topdown-v3": "Press the button on top of the box from above.",
    "button-press-topdown-wall-v3": "Reach over the wall and press the button from above.",
    "button-press-v3": "Push the button on the front of the box.",
    "button-press-wall-v3": "Go around the wall and push the button on the front of the box.",
    "coffee-button-v3": "Press the button of the coffee machine.",
    "coffee-pull-v3": "Pull the mug away from the coffee machine to the mark.",
    "coffee-push-v3": "Push the mug under the spout of the coffee machine.",
    "dial-turn-v3": "Turn the dial half way around.",
    "disassemble-v3": "Lift the wrench-shaped nut off the peg.",
    "door-close-v3": "Close the door.",
    "door-lock-v3": "Lock the door by turning its lock clockwise.",
    "door-open-v3": "Open the door by its handle.",
    "door-unlock-v3": "Unlock the door by turning its lock counter-clockwise.",
    "hand-insert-v3": "Put the gripper into the hole in the table.",
    "drawer-close-v3": "Push the drawer shut.",
    "drawer-open-v3": "Pull the drawer open by its handle.",
    "faucet-open-v3": "Turn on the faucet by rotating its handle counter-clockwise.",
    "faucet-close-v3": "Turn off the faucet by rotating its handle clockwise.",
    "hammer-v3": "Pick up the hammer and drive the nail into the wall.",
    "handle-press-side-v3": "Press the handle on the side of the box down.",
    "handle-press-v3": "Press the handle on the front of the box down.",
    "handle-pull-side-v3": "Pull the handle on the side of the box up.",
    "handle-pull-v3": "Pull the handle on the front of the box up.",
    "lever-pull-v3": "Raise the lever until it points straight up.",
    "pick-place-wall-v3": "Pick up the puck, carry it over the wall and hold it at the goal.",
    "pick-out-of-hole-v3": "Take the puck out of the hole and bring it to the goal.",
    "pick-place-v3": "Pick up the puck and hold it at the goal.",
    "plate-slide-v3": "Slide the plate forward into the cabinet.",
    "plate-slide-side-v3": "Slide the plate sideways into the cabinet.",
    "plate-slide-back-v3": "Slide the plate out of the cabinet towards the robot.",
    "plate-slide-back-side-v3": "Slide the plate out of the cabinet to the side.",
    "peg-insert-side-v3": "Pick up the peg and insert it into the hole in the side of the box.",
    "peg-unplug-side-v3": "Unplug the peg from the side of the box.",
    "soccer-v3": "Push the ball into the soccer goal.",
    "stick-push-v3": "Grasp the stick and use it to push the thermos to the goal.",
    "stick-pull-v3": "Grasp the stick and use it to pull the thermos to the goal.",
    "push-v3": "Push the puck along the table to the goal.",
    "push-wall-v3": "Push the puck around the wall to the goal.",
    "push-back-v3": "Drag the puck back towards the robot to the goal.",
    "reach-v3": "Move the gripper to the goal.",
    "reach-wall-v3": "Move the gripper over the wall to the goal.",
    "shelf-place-v3": "Pick up the puck and place it on the shelf.",
    "sweep-into-v3": "Sweep the puck into the hole in the table.",
    "sweep-v3": "Sweep the puck off the table.",
    "window-open-v3": "Slide the window open.",
    "window-close-v3": "Slide the window closed.",
}
"""Meta-World v3 task → instruction, in Meta-World's own order of its 50 tasks."""

METAWORLD_MT10: tuple[str, ...] = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
"""The ten tasks of Meta-World's MT10 benchmark, in its order."""

PUSHT_INSTRUCTION = "Push the T-shaped block onto the green target."
