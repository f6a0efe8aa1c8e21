"""The benchmark: packnback beside other tools, and how its costs grow. See docs/performance.md."""
