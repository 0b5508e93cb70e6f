"""Methods, generators and priors from outside the package: registered by a program, or offered by a package."""
