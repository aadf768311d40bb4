"""The machinery around the papers' files: nothing here is needed to understand a paper.

    files, run      checkpoints, settings, a training that continues exactly
    images, formats picture files, and how data sets lie on a disk
    toyfaces        drawn faces of which everything is known; toysets: whom each paper draws; judges read them
    labels, views, albums, chain, warp    what a paper's file leaves out: names of labels, crops by landmarks,
                    pictures of people in poses, rounds in a folder, bending one face onto another
    copying         a phase of ours before the training of CycleGANs
    authors         published weights under our names; recognition: protocols of face recognition;
                    handover: a finished model's weights for the next training
    cli, bench      the command line, time and memory of a step; machine: what it runs on
    demos           --demo, and the weights that come with the repository
    claims          measures, evaluation and ablation of each paper
"""
quiet = False                                   # set in the processes of an ablation


class UserError(Exception):
    """Something only the user can mend. The command line prints it as one line and exits with code 2."""


def say(*words):
    """Print, unless this process is one of several."""
    if not quiet:
        print(*words, flush=True)
