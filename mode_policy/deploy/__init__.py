"""Real-time control: policy server and client, control loop, strategies, safety, robots, telemetry.

::

    robot ── observe ──► guard ──► strategy ──► safety filter ──► act ──► robot      every tick
                                   ▲      │
                            chunk  │      ▼ request                                  whenever one is due
                           inference: this process, a child process, or a policy server

The loop never waits for a policy. What runs in it is pure (`strategies`, `safety`, `motion`, `guard`) or a
few memory writes (`telemetry`); everything that blocks lives in other threads and processes.
"""
