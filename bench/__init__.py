"""Side-by-side measurements, each one command; `docs/measurements.md` has their figures."""
