"""Downloads the model of a prior to the local cache, for a machine that will have no network.

    nfsd3d download sd35
    nfsd3d download sd21 --model owner/name

It prints the folder, which can be copied to another machine and named there with prior.model=FOLDER. HF_HOME says where
the cache is.
"""

import argparse
from collections.abc import Sequence

from nfsd3d.cli.options import Parser
from nfsd3d.errors import InputError
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.priors import TABLE
from nfsd3d.prior.settings import PriorSettings


def main(argv: Sequence[str]) -> int:
    """Downloads, prints the model's folder, and returns 0.

    Raises:
        InputError: no such prior, or its model cannot be had; the message says why for each id.
    """
    options = parser().parse_args(argv)
    settings = PriorSettings(name=options.prior_name, model=options.model, vae=options.vae, offline=False)
    source = TABLE.find(options.prior_name).locate(settings)
    if source is None:
        raise InputError(f"prior={options.prior_name}: has no model files to download")
    files = fetch(source)
    print(f"model: {files.folder}")
    if files.base is not None:
        print(f"its other parts: {files.base}")
    if files.vae is not None:
        print(f"autoencoder: {files.vae}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d download``."""
    parser = Parser(prog="nfsd3d download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior_name", metavar="NAME", help="the prior, as in prior=NAME")
    parser.add_argument("--model", help="a hub id instead of the prior's own, as in prior.model=owner/name")
    parser.add_argument("--vae", help="another autoencoder too, as in prior.vae=owner/name")
    return parser
