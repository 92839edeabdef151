"""What tests are made of, shipped so that whoever registers a step, an exporter, a runtime or a target can use it.

``networks`` are small seeded networks, ``fakes`` a runtime and a target that do what they are told; ``steps``,
``exporters``, ``runtimes`` and ``targets`` are the conformance suites. They need pytest. A suite is used by
subclassing it in a test module:

    @pytest.mark.parametrize("name", STEPS)
    class TestSteps(StepConformance): ...
"""
