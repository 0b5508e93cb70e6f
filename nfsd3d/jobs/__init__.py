"""Sets of jobs (sweeps, suites, comparisons): their manifest, the state of each job, and the engines that run them."""
