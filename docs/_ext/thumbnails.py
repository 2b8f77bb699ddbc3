"""Makes docs/_static/gallery/ and the grid of docs/gallery/index.md of the gallery's programs:
python docs/_ext/thumbnails.py [names], from the clone. A picture shows what its program found."""

import io
import pathlib
import re
import sys

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from PIL import Image

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent.parent / "tests/benchmarks"))
import gallery  # noqa: E402

BLUE, ORANGE, GREEN, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "0.45",
)  # told apart by the colour-blind
DRAW = {}
"""By page: puts the program's result, its names, on a panel."""


def of(page):
    return lambda draw: DRAW.setdefault(page, draw)


def cloud(panel, mean, covariance, colour, style="-"):
    """The ellipse of two standard deviations."""
    values, vectors = np.linalg.eigh(covariance)
    width, height = 4 * np.sqrt(values)
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    panel.add_patch(
        Ellipse(mean, width, height, angle=angle, fill=False, color=colour, lw=2, ls=style)
    )


def bars(panel, values, colours, label):
    panel.bar(range(len(values)), list(values.values()), color=colours, width=0.6)
    panel.set_xticks(range(len(values)), list(values))
    panel.set_ylabel(label)


@of("gcrl")
def _(panel, s):
    ks = list(s["gap"])
    panel.plot(ks, [s["gap"][k] for k in ks], "o-", color=BLUE, label="plug-in")
    panel.plot([20 * 5.4], [s["debiased"]], "s", color=ORANGE, label="debiased")
    panel.axhline(0.0, color=GREY, lw=1)
    panel.set(xscale="log", xlabel="draws", ylabel="less log p(x, y)")
    panel.legend(fontsize=8)


@of("binary-continual")
def _(panel, s):
    values = [s["accuracy"](s[h]) for h in ("h", "kept", "forgot")]
    found = dict(zip(("before", "with KL", "without"), values, strict=True))
    bars(panel, found, [GREY, BLUE, ORANGE], "accuracy, task 1")
    panel.set_ylim(0.5, 0.9)


@of("f-distill")
def _(panel, s):
    x = np.linspace(-6, 6, 300)
    panel.fill_between(x, np.exp(s["log_p"](x)), color="0.85")
    styles = [(BLUE, "-"), (ORANGE, "--"), (GREEN, ":")]
    for name, (colour, style) in zip(
        ("reverse KL", "Hellinger", "forward KL"), styles, strict=True
    ):
        phi = s["fits"][name]
        sd = np.exp(phi["log_sd"])
        density = np.exp(-0.5 * ((x - phi["mean"]) / sd) ** 2) / sd / np.sqrt(2 * np.pi)
        panel.plot(x, density, style, color=colour, label=name, lw=1.8)
    panel.set(yticks=[], xlabel="x")
    panel.legend(fontsize=7)


@of("deep-kernel-machine")
def _(panel, s):
    back = s["back"]
    grams = [s["first"], *s["grams"], s["last"]]
    values = [np.linalg.eigvalsh(back @ g @ back) for g in grams]
    panel.plot(values, "o-", color=BLUE)
    panel.set(yscale="log", xlabel="layer", ylabel="eigenvalues", xticks=range(len(grams)))


@of("posterior-collapse")
def _(panel, s):
    fine = np.linspace(0.0, 4.2, 400)
    for beta, found, colour in zip(s["betas"], s["found"], (BLUE, ORANGE, GREEN), strict=True):
        panel.plot(fine, np.sqrt(np.maximum(fine - beta * s["eta"] ** 2, 0)), color=colour, lw=1)
        panel.plot(s["theta"], found, "o", color=colour, label=f"β = {beta:.0f}", ms=4)
    panel.set(xlabel="θ", ylabel="strength")
    panel.legend(fontsize=8)


@of("niw-meta")
def _(panel, s):
    panel.scatter(*np.asarray(s["theta"][:400]).T, 3, color="0.75")
    cloud(panel, s["best"]["mean"], s["covariance"], BLUE)
    cloud(panel, s["phi"]["mean"], s["sigma"], ORANGE, "--")
    panel.set(xlabel="θ₁", ylabel="θ₂")


@of("bayesian-optimization")
def _(panel, s):
    x, p = np.asarray(s["grid"]), s["p"]
    mean, covariance = s["predict"](p, s["grid"], s["seen"], s["y"])
    sd = np.sqrt(np.maximum(np.diag(covariance), 0))
    panel.fill_between(x, mean - 2 * sd, mean + 2 * sd, color="0.88")
    panel.plot(x, mean, color=GREY)
    panel.plot(s["seen"], s["y"], "o", color="black", ms=4)
    for f, colour, name in (("exact_improvement", BLUE, "EI"), ("exact_knowledge", ORANGE, "KG")):
        values = np.array([s[f](u, p) for u in s["grid"][::4]])
        panel.plot(x[::4], -3.2 + values / values.max(), color=colour, label=name)
    panel.set(xlabel="x", yticks=[])
    panel.legend(fontsize=8, loc="upper left")


@of("infonce")
def _(panel, s):
    panel.plot(s["fit"].history, color=BLUE, lw=0.7)
    panel.axhline(s["truth"], color=ORANGE, ls="--")
    panel.set(xlabel="step", ylabel="bound", ylim=(0, None))


@of("cross-entropy-method")
def _(panel, s):
    steps = 100 * np.arange(1, len(s["means"]) + 1)
    steps = np.append(0, np.minimum(steps, s["steps"]))
    panel.plot(steps, [np.zeros(5), *map(np.asarray, s["means"])], color=BLUE)
    panel.plot(np.full(5, steps[-1]), s["optimum"], "o", color=ORANGE)
    panel.set(xlabel="step", ylabel="mean")


@of("slate-recommender")
def _(panel, s):
    panel.scatter(s["true_gram"].ravel()[::3], s["gram"].ravel()[::3], 3, color=BLUE)
    panel.set(xlabel="true product", ylabel="learnt")


@of("score-prior")
def _(panel, s):
    x = np.linspace(-2.5, 2.5, 300)
    normal = lambda v: np.exp(-0.5 * x**2 / v) / np.sqrt(2 * np.pi * v)
    panel.fill_between(x, normal(1 / (s["lam"] + 1 / s["tau2"])), color="0.85", label="exact")
    panel.plot(x, normal(s["u"]), color=BLUE, lw=3, label="fixed point")
    panel.plot(x, normal(float(s["v"])), "--", color=ORANGE, label="learnt")
    panel.set(yticks=[], xlabel="pixel less its mean")
    panel.legend(fontsize=7)


@of("pulaski")
def _(panel, s):
    names = {
        "truth": 0.3,
        **{n.replace("energy distance", "energy"): float(v) for n, v in s["share"].items()},
    }
    bars(panel, names, [GREY, BLUE, ORANGE, ORANGE], "share of wide")
    panel.set_xticks(range(4), ["truth", "energy", "β = 1", "β = 10"])


@of("noisy-preferences")
def _(panel, s):
    found = {"votes only": s["plain"], "summed out": s["noisy"], "truth": s["oracle"]}
    bars(panel, found, [ORANGE, BLUE, GREY], "AUC, no vote")
    panel.set_ylim(0.5, 0.9)


@of("reward-uncertainty")
def _(panel, s):
    found = {"weighted": s["bias"][True], "unweighted": s["bias"][False]}
    bars(panel, found, [BLUE, ORANGE], "bias")


@of("information-hierarchy")
def _(panel, s):
    passed = np.array(s["passed"])
    steps = 100 * np.arange(1, len(passed) + 1)
    for kl, colour, name in zip(passed.T, (BLUE, ORANGE), ("first", "second"), strict=True):
        panel.plot(steps, kl, "o-", ms=3, color=colour, label=name)
    panel.set(xlabel="step", ylabel="nats", ylim=(0, None))
    panel.legend(fontsize=8)


@of("cs-bottleneck")
def _(panel, s):
    found = dict(zip(map(str, s["betas"]), s["kept"], strict=True))
    bars(panel, found, BLUE, "dependence")
    panel.set_xlabel("β")


@of("monotone-boltzmann")
def _(panel, s):
    first = np.concatenate([np.asarray(s["first"])[:, None], np.asarray(s["paths"])[:, 1:9]], 1)
    panel.plot(first[:, :, 0].T, color=BLUE, lw=1)
    panel.plot(first[:, :, 5].T, color=ORANGE, lw=1)
    panel.set(xlabel="iteration", ylabel="two marginals")


@of("predictive-coding-rnn")
def _(panel, s):
    free, places = np.asarray(s["free"]), s["places"]
    panel.plot(*free[:40].reshape(-1, 2).T, ".", color=BLUE, ms=2, alpha=0.4)
    for i, name in enumerate("ABCDE"):
        panel.text(*places[i] * 1.35, name, color=ORANGE, weight="bold", ha="center", va="center")
    panel.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=[], yticks=[], aspect="equal")


@of("sparse-subspace")
def _(panel, s):
    for (name, curve), colour in zip(s["curves"].items(), (BLUE, ORANGE, GREY), strict=True):
        panel.plot(curve, color=colour, label=name)
    panel.set(xlabel="round", ylabel="accuracy")
    panel.legend(fontsize=7)


@of("plug-and-play")
def _(panel, s):
    panel.plot(*np.asarray(s["draws"])[::40].T, ".", color=BLUE, ms=2)
    for label, (colour, style) in enumerate(((BLUE, "-"), (GREY, ":"))):
        for centre in s["centres"][label]:
            cloud(panel, centre, 0.49 * np.eye(2), colour, style)
    panel.set(xlim=(-4, 4), ylim=(-3.2, 3.2), xticks=[], yticks=[], aspect="equal")


@of("crossflow")
def _(panel, s):
    for label, colour in ((0, BLUE), (1, ORANGE)):
        panel.plot(*np.asarray(s["made"])[s["labels"] == label][:300].T, ".", color=colour, ms=2)
    panel.set(xticks=[], yticks=[], aspect="equal")


@of("information-generalization")
def _(panel, s):
    panel.plot(list(s["curve"]), list(s["curve"].values()), "o-", color=BLUE, label="plug-in")
    panel.axhline(s["truth"], color=GREY, lw=1)
    panel.errorbar([16 * 4], [s["found"]], 2 * s["error"], fmt="s", color=ORANGE, label="debiased")
    panel.set(xscale="log", xlabel="inner draws", ylabel="nats")
    panel.legend(fontsize=8)


@of("lossy-information")
def _(panel, s):
    panel.plot([0, 3], [0, 3], color=GREY, lw=1)
    panel.plot(s["truth"], s["found"], "o", color=BLUE)
    panel.set(xlabel="nats, exactly", ylabel="estimate")


@of("source-free")
def _(panel, s):
    values = (s["accuracy"](s["source"], s["old"]), s["before"], s["after"])
    found = dict(zip(("old", "new", "adapted"), values, strict=True))
    bars(panel, found, [GREY, ORANGE, BLUE], "accuracy")
    panel.set_ylim(0.3, 1.0)


@of("entropy-gan")
def _(panel, s):
    panel.plot(*np.asarray(s["made"])[:800].T, ".", color=BLUE, ms=2)
    panel.plot(*np.asarray(s["centres"]).T, "o", color=ORANGE, ms=9, fillstyle="none")
    panel.set(xticks=[], yticks=[], aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))


@of("pretraining")
def _(panel, s):
    for pre, colour, name in ((True, BLUE, "pre-trained"), (False, ORANGE, "alone")):
        panel.plot(
            s["labels"], [s["error"][pre, n] for n in s["labels"]], "o-", color=colour, label=name
        )
    panel.set(xlabel="labels", ylabel="error", xscale="log")
    panel.legend(fontsize=8)


@of("unobserved-confounder")
def _(panel, s):
    bars(
        panel,
        {"truth": 1.0, "inferred": s["found"], "naive": s["naive"]},
        [GREY, BLUE, ORANGE],
        "effect",
    )


@of("mask-tuning")
def _(panel, s):
    bars(panel, {"frozen": s["frozen"], "masked": s["tuned"]}, [ORANGE, BLUE], "accuracy")


@of("vector-quantization")
def _(panel, s):
    bars(panel, {"16 bits": s["found"], "4 components": s["pca"]}, [BLUE, GREY], "squared error")


@of("wasserstein-dependency")
def _(panel, s):
    panel.plot(s["fit"].history, color=BLUE, lw=0.8)
    panel.axhline(s["exact"], color=ORANGE, ls="--")
    panel.set(xlabel="step", ylabel="critic", ylim=(0, None))


@of("active-units")
def _(panel, s):
    panel.bar(range(s["units"]), np.sort(s["activity"])[::-1], color=BLUE)
    panel.set(xlabel="latent", ylabel="variance of means", xticks=[])


@of("conditional-vae")
def _(panel, s):
    key, p, test, rows = s["jax"].random.key(5), s["fits"][1.0], s["test"], []
    for i in range(8):
        upper = np.asarray(test["upper"][i])
        x = np.concatenate([upper, np.asarray(test["label"][i])])
        z = s["model"](p, x).simulate(key)["z"]
        lower = 1 / (1 + np.exp(-np.asarray(s["net"](p["decoder"], x, z))))
        rows.append(np.pad(np.concatenate([upper, lower]).reshape(8, 8), 1, constant_values=0.3))
    panel.imshow(np.concatenate([np.hstack(rows[:4]), np.hstack(rows[4:])]), cmap="Greys")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)


@of("common-salient")
def _(panel, s):
    for shift, factor, colour in ((-0.2, "common", BLUE), (0.2, "salient", ORANGE)):
        found = [s["found"][code, factor] for code in "cs"]
        panel.bar(np.arange(2) + shift, found, 0.35, color=colour, label=factor)
    panel.axhline(1 / s["classes"], color=GREY, lw=1)
    panel.set(xticks=range(2), xticklabels=["c", "s"], ylabel="accuracy", ylim=(0, 1.35))
    panel.legend(fontsize=8, ncols=2, loc="upper center")


@of("spurious-gates")
def _(panel, s):
    found = {f"right in {right}": float(np.median(r[64:])) for right, r in s["ratio"].items()}
    bars(panel, found, [BLUE, ORANGE], "σ² / μ², spurious")
    panel.axhline(1.0, color=GREY, lw=1)
    panel.set(yscale="log", xlim=(-0.6, 1.6))


@of("unlearning")
def _(panel, s):
    for shift, when, colour in ((-0.2, "before", GREY), (0.2, "after", BLUE)):
        found = [s["found"][when, what] for what in ("keep", "forget")]
        panel.bar(np.arange(2) + shift, found, 0.35, color=colour, label=when)
    panel.set(xticks=range(2), xticklabels=["to keep", "to forget"], ylabel="accuracy")
    panel.set_ylim(0, 1.35)
    panel.legend(fontsize=8, ncols=2, loc="upper center")


@of("graph-records")
def _(panel, s):
    found = {f"λ = {lam:g}": area for lam, area in zip(s["lams"], s["areas"], strict=True)}
    bars(panel, found, [ORANGE, BLUE], "area")
    panel.axhline(s["figure"]["share with the outcome"], color=GREY, lw=1)


@of("hierarchical-collapse")
def _(panel, s):
    panel.plot([0, 3], [0, 3], color=GREY, lw=1)
    for i, (name, colour) in enumerate((("lower", BLUE), ("upper", ORANGE))):
        panel.plot(
            s["predicted"][:, i].ravel(),
            s["found"][:, i].ravel(),
            "o",
            ms=4,
            color=colour,
            label=name,
        )
    panel.set(xlabel="predicted", ylabel="strength")
    panel.legend(fontsize=8)


@of("fractional-noise")
def _(panel, s):
    times = s["dt"] * np.arange(1, s["t"] + 1)
    for h, colour in zip(s["exponents"], (BLUE, ORANGE), strict=True):
        xs, likely, learnt, _ = s["found"][h, "learnt"]
        label = f"H = {learnt:.2f}, exactly {likely:.2f}"
        panel.plot(times, xs[:3].T, color=colour, lw=0.8, label=[label, None, None])
    panel.set(xlabel="time", ylabel="observed")
    panel.legend(fontsize=7)


@of("quantized-defence")
def _(panel, s):
    names = {"clean": "accuracy", "attacked": "accuracy, attacked"}
    names |= {"filtered": "accuracy, attacked and filtered, held"}
    found = {k: s["figure"][name] for k, name in names.items()}
    bars(panel, found, [GREY, ORANGE, BLUE], "accuracy")


@of("nested-dropout")
def _(panel, s):
    steps = 30 * np.arange(1, s["rounds"] + 1)
    for (name, curve), colour in zip(s["curves"].items(), (ORANGE, BLUE), strict=True):
        panel.plot(steps, curve, "o-", ms=3, color=colour, label=name)
    panel.set(xlabel="step", ylabel="accuracy")
    panel.legend(fontsize=8)


def draw(name, scope):
    figure = Figure(figsize=(3.2, 2.0), layout="constrained")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    DRAW[name](panel, scope)
    folder = HERE.parent / "_static/gallery"
    folder.mkdir(exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(48).save(folder / f"{name}.png", optimize=True)


def index():
    """The grid: the picture, title and first sentence of each page."""
    entries = []
    for page in gallery.pages():
        title, alt = re.match(r"# (.*)\n+!\[(.*)\]", page.text).groups()
        name = page.path.stem
        entries.append(
            f"- [![{alt}](../_static/gallery/{name}.png)]({name}.md)\n  [{title}]({name}.md)\n"
        )
    path = gallery.DOCS / "gallery/index.md"
    start, rest = path.read_text().split("<!-- grid -->\n")[::2]
    path.write_text(f"{start}<!-- grid -->\n{''.join(entries)}<!-- grid -->\n{rest}")


if __name__ == "__main__":
    for page in gallery.pages(sys.argv[1:]):
        draw(page.path.stem, page.run())
    index()
