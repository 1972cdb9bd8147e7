"""Benchmarks of crossmedia_fast: named shapes of real networks, suites, peers. See README.md."""
