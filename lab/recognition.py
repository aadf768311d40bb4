"""How recognition of people is measured: rank 1, verification as in CFP, what features know of a label."""
import numpy as np
import torch
import torch.nn.functional as F


def identify(gallery, probes):
    """Rank 1 by cosine distance: index of the nearest gallery feature [P, n] for each probe [M, n]: [M]."""
    return (F.normalize(probes, dim=1) @ F.normalize(gallery, dim=1).T).argmax(1)


# ==================================================================================== verification

def verification_pairs(who, first, second, folds, g):
    """CFP's rule: people in folds; each person has seven pairs with themselves and seven with others in it.

    who: [N], 0 ... people - 1; first, second: [N] bool, which pictures may stand on either side; g: a
    torch.Generator. Returns a, b: indices, same: bool, fold, each [M], or None. Fewer pictures, fewer pairs.
    """
    rows, people = [], torch.arange(int(who.max()) + 1)
    left, right = ([(side & (who == one)).nonzero()[:, 0].tolist() for one in people]
                   for side in (first, second))

    def some(pairs, most):
        return [pairs[k] for k in torch.randperm(len(pairs), generator=g)[:most].tolist()]

    for fold, members in enumerate(people.tensor_split(folds)):
        for one in members.tolist():
            same, others = alike(left[one], right[one]), set(members.tolist()) - {one}
            different = [(i, j) for other in sorted(others) for i in left[one] for j in right[other]]
            rows += [(*pair, True, fold) for pair in some(same, 7)]
            rows += [(*pair, False, fold) for pair in some(different, min(7, len(same)))]
    return [torch.tensor(column) for column in zip(*rows, strict=True)] if rows else None


def alike(left, right):
    """Pairs of pictures of one person, none twice, none with itself."""
    pairs = ((i, j) for i in left for j in right if i != j)
    return sorted({(min(pair), max(pair)) if left == right else pair for pair in pairs})


def verification(score, same, fold):
    """Are two pictures of the same person? score: [M], higher = more alike; same: [M] bool; fold: [M].

    accuracy and std over the folds, each at the threshold that is best on the others (CFP's protocol); AUC;
    EER, the equal error rate.
    """
    score, same, fold = score.double().numpy(), same.numpy(), fold.numpy()
    accuracy = []
    for one in np.unique(fold):
        others = fold != one
        thresholds, missed, let_in = errors(score[others], same[others])
        best = thresholds[(missed + let_in).argmin()]
        accuracy.append(((score >= best) == same)[fold == one].mean())
    _, missed, let_in = errors(score, same)
    missed, let_in = missed / max(1, same.sum()), let_in / max(1, (~same).sum())
    k = np.abs(missed - let_in).argmin()
    AUC = ((let_in[:-1] - let_in[1:]) * (2 - missed[1:] - missed[:-1])).sum() / 2
    return {"accuracy": float(np.mean(accuracy)), "std": float(np.std(accuracy)), "AUC": float(AUC),
            "EER": float((missed[k] + let_in[k]) / 2)}


def errors(score, same):
    """At every threshold: how many of the same person are below it, of different people at or above it."""
    values, place = np.unique(score, return_inverse=True)
    missed, passed = (np.bincount(place[same == kind], minlength=len(values)) for kind in (True, False))
    missed, passed = (np.concatenate([[0], counts.cumsum()]) for counts in (missed, passed))
    thresholds = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    return thresholds, missed, passed[-1] - passed


# ============================================================================ what features know

def spearman(a, b):
    """Rank correlation; equal values share their mean rank. 0 where one side is constant."""
    ranks = []
    for v in (a, b):
        v = np.asarray(v, dtype=np.float64)
        _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(r) > 0 for r in ranks) else 0.


def pose_probe(f, pose, who):
    """How much of the pose can be read in f [N, n]: accuracy of a linear classifier of the poses [N].

    It is learned on half of the people who [N], and tested on the others.
    """
    learn = who % 2 == 0
    x = (f - f[learn].mean(0)) / f[learn].std(0).clamp(min=1e-6)
    W = torch.zeros(x.shape[1] + 1, int(pose.max()) + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([W], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = F.cross_entropy(x[learn] @ W[:-1] + W[-1], pose[learn]) + 1e-3 * W[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    W = W.detach()
    return ((x[~learn] @ W[:-1] + W[-1]).argmax(1) == pose[~learn]).float().mean().item()


def share(f, label):
    """Part of the variance of f [N, n] that lies between the means of the groups that share a label [N]."""
    kinds, group = label.unique(return_inverse=True)
    means = torch.stack([f[label == k].mean(0) for k in kinds])[group]
    return ((means - f.mean(0)).square().sum() / (f - f.mean(0)).square().sum()).item()
