"""Export: a policy as a folder that a robot runs without the code that trained it, and how to run it.

Writing, on the machine that has the checkpoint::

    compact   the policy with the experts that some step uses
    graph     observation, noise and instruction to actions, as a function of tensors alone
    aoti      that function as native code (``model.pt2``)
    program   a sampler as a table of numbers
    loop      the network with its noise level as a tensor, so that one body serves every step
    onnx      that body in an ONNX loop (``model.onnx``)
    weights   the weights alone (``weights.safetensors``)
    write     all of it together: writes a folder, runs it, and compares it with the policy

Running, anywhere: `runtime` reads the folder by its `manifest`, holds it to the `machine`, and acts.
"""
