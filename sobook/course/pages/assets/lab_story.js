// The story: seven questions, each with settings to run, a prediction, and what the numbers that
// came out say: those sentences are chosen by the reader's own run. `found` is what the package's
// studies found with ten seeds; tests hold its numbers and verdicts to data/results.
//
// A step: `key` is its name in Python, `levers` and `views` what is left of the board where it stands
// alone in a notebook; `set` is the run; `against` what it is compared with; `choices` the predictions;
// `came(run, base, world)` which of them came true; `after(run, base, world, came)` two sentences.
// The world is { noun, C, D, chance, floor, frozen, queries, find }, find(settings) an earlier run or undefined.

const signed = (value) => (value > 0 ? "+" : "") + fixed(value);

const STORY = (() => {
  const SMALL = 0.005; // smaller differences of Recall@1 do not matter; as studies' smallest_effect
  const DIFFERENCE = [
    "Higher by more than 0.005",
    "The same, within 0.005",
    "Lower by more than 0.005",
  ];
  const ofDifference = (run, base) => {
    const change = run.recall_at_1 - base.recall_at_1;
    return Math.abs(change) <= SMALL ? 1 : change > 0 ? 0 : 2;
  };

  function paired(run, base, world, what) {
    const { difference, low, high } = statistics.compareClasses(base.hits, run.hits, world.queries);
    const meaning =
      low > 0 || high < 0
        ? "It leaves out 0, but this is one pair of runs, and another seed may say otherwise."
        : "It contains 0: this pair of runs shows no difference, which is not to show that there is none.";
    return `${what}: ${signed(difference)} Recall@1, 95 % interval over ${world.noun} [${signed(low)}, ${signed(high)}]. ${meaning}`;
  }

  function besideFrozen(run, base, { frozen }) {
    const above = [run, base].filter(({ recall_at_1 }) => recall_at_1 > frozen).length;
    if (above === 2) return `Both are above the frozen encoder's ${fixed(frozen)}.`;
    if (above === 1) return `One of the two is not above the frozen encoder's ${fixed(frozen)}.`;
    return `Neither is above the frozen encoder's ${fixed(frozen)}, so the comparison says little.`;
  }

  return [
    {
      key: "crowding",
      name: "Crowding",
      levers: ["scale", "margin"],
      views: ["heat", "angles", "curve"],
      found:
        "They crowded (study threshold_aviary, 128 dimensions, 120 epochs): RMS cosine 0.228, mean cosine 0.214. The direction that all proxies share makes 0.880 of the mean square.",
      set: {},
      question: ({ C, D, chance }) =>
        `Before training, ${C} proxies in ${D} dimensions point anywhere: the typical (RMS) cosine of two of them is 1/√${D} = ${fixed(chance)}. Proxy Anchor pulls each image to its own proxy and pushes it away from all others; no term compares proxy with proxy. What will training do to the proxies?`,
      choices: ["Push them apart", "Leave them as they are", "Crowd them together"],
      came: (run, _, { chance }) => {
        const ratio = run.geometry.rms_cosine / chance;
        return ratio > 1.15 ? 2 : ratio < 0.87 ? 0 : 1;
      },
      after: (run, _, { chance }, came) => {
        const { rms_cosine: rms, mean_cosine: mean } = run.geometry;
        const share = (mean / rms) ** 2;
        const how = ["They moved apart", "They stayed about as they were", "They crowded"][came];
        return [
          `${how}: the RMS cosine ended at ${fixed(rms)}, ${fixed(rms / chance, 1)} times that of random directions.`,
          `The mean cosine is ${fixed(mean)}, so ${percent(share)} of the mean square is one direction that all proxies share${share > 0.5 ? ": a common mode, more than particular pairs." : "; the rest is particular pairs."}`,
        ];
      },
    },
    {
      key: "remedy",
      name: "The remedy",
      levers: ["so_weight"],
      views: ["heat", "angles", "curve"],
      found:
        "λ = 100 took the RMS cosine from 0.228 to 0.040 (study threshold_aviary). But the shared direction did not go away: it moved into the embeddings, whose mean grew from 0.607 long to 0.783.",
      set: { so_weight: 100 },
      against: {},
      question: ({ C, D, floor }) =>
        `Soft orthogonality (SO) adds λ times the mean squared cosine of two proxies to the loss. With ${C} proxies in ${D} dimensions ${floor > 0 ? `the RMS cosine cannot fall below ${fixed(Math.sqrt(floor))}` : "nothing keeps the RMS cosine from 0"}. How much crowding is left at λ = 100?`,
      choices: ["Nearly all of it", "About half of it", "Less than random directions have"],
      came: (run, base, { chance }) => {
        const { rms_cosine: rms } = run.geometry;
        return rms < chance ? 2 : rms > 0.75 * base.geometry.rms_cosine ? 0 : 1;
      },
      after: (run, base, { chance, noun }) => [
        `RMS cosine ${fixed(base.geometry.rms_cosine)} without SO, ${fixed(run.geometry.rms_cosine)} with it; random directions have ${fixed(chance)}.`,
        `Recall@1 on unseen ${noun} was ${fixed(base.recall_at_1)} without and ${fixed(run.recall_at_1)} with it: is that a difference? That is the next question.`,
      ],
    },
    {
      key: "help",
      name: "Does it help?",
      levers: ["so_weight", "seed"],
      views: ["angles", "curve", "loss-chart"],
      found:
        "With 20 epochs in 64 dimensions, λ = 100 changed Recall@1 by −0.004 (study convergence_heads): corrected for 24 comparisons, no difference shown.",
      set: { so_weight: 100, seed: 1 },
      against: { seed: 1 },
      question: ({ noun }) =>
        `Proxies at right angles are the means; finding images of unseen ${noun} is the end. Both runs once more, from another seed. Compared with λ = 0, Recall@1 at λ = 100 will be …`,
      choices: DIFFERENCE,
      came: ofDifference,
      after: (run, base, world) => [
        paired(run, base, world, "With SO minus without"),
        besideFrozen(run, base, world),
      ],
    },
    {
      key: "cones",
      name: "The two cones",
      levers: ["dim", "threshold", "scale"],
      views: ["space", "angles", "curve"],
      found:
        "The cosine of the two means was −0.977, and the mean embedding 0.607 long (study threshold_aviary). Nearly opposite cones, in every seed.",
      set: {},
      question: ({ C }) =>
        `Back to λ = 0. On the globe, up is the direction of the mean proxy. The loss wants each image's cosine with its ${C - 1} foreign proxies below 0. On which side will the images be?`,
      choices: ["On the side of the proxies", "On no particular side", "On the opposite side"],
      came: ({ means }) => (means.cosine > 0.3 ? 0 : means.cosine < -0.3 ? 2 : 1),
      after: ({ means }, _, { C }, came) => [
        `The cosine of the mean proxy and the mean embedding is ${fixed(means.cosine, 2)}; the mean embedding is ${fixed(means.embedding_length, 2)} long (0: no shared direction, 1: all the same).`,
        came === 2
          ? `Proxies on one cone, images on the opposite one: turning all proxies one way and all images the other lowers every cosine between them at once, without arranging ${C} proxies one by one.`
          : "Here the two means do not point away from each other.",
      ],
    },
    {
      key: "threshold",
      name: "Move the threshold",
      levers: ["threshold", "threshold_lr", "so_weight"],
      views: ["space", "angles", "curve"],
      found:
        "b = 0.4 took the mean cosine of the proxies from 0.214 to −0.016 and the mean embedding from 0.607 long to 0.153; b learned, ending at 0.438, did the same (study threshold_aviary). So a threshold frees proxies and embeddings of the shared direction, where SO only moves it. Recall@1 changed by −0.001 at b = 0.4 and by −0.000 with b learned: no difference shown. With 1,300 classes in 128 dimensions it was higher by 0.008 with b learned, where SO lost (study threshold_many_classes).",
      set: { threshold: 0.4 },
      against: {},
      question: () =>
        "The loss compares cosines with a threshold b; as published, b = 0. If that 0 is what drives the cones apart, then b = 0.4 should close them, without any SO. What will the mean cosine of the proxies do?",
      choices: ["Fall to nearly 0", "Fall by about half", "Stay where it was"],
      came: (run, base) => {
        const left = Math.abs(run.geometry.mean_cosine / base.geometry.mean_cosine);
        return left < 0.25 ? 0 : left < 0.75 ? 1 : 2;
      },
      after: (run, base, { C }, came) => {
        const [before, now] = [base, run].map(({ geometry }) => geometry.mean_cosine);
        const length = (mean) => Math.sqrt(Math.max(0, 1 + (C - 1) * mean) / C); // of the mean proxy
        const part = ["nearly all", "a part", "little"][came];
        return [
          `Mean cosine ${fixed(before)} at b = 0, ${fixed(now)} at b = 0.4; the mean proxy, ${fixed(length(before), 2)} long before, is now ${fixed(length(now), 2)} long (random directions: ${fixed(1 / Math.sqrt(C), 2)}).`,
          `So the threshold made ${part} of the shared direction here. Recall@1 was ${fixed(base.recall_at_1)} before and is ${fixed(run.recall_at_1)} now: one pair of runs.`,
        ];
      },
    },
    {
      key: "epochs",
      name: "More epochs",
      levers: ["so_weight", "epochs"],
      views: ["angles", "curve", "loss-chart"],
      found:
        "In 512 dimensions, λ = 30 gained 0.016 after 20 epochs: higher. After 120 epochs the difference was −0.003 and after 240 it was +0.002: no difference shown (study convergence_heads). SO made heads learn faster, not better.",
      set: { so_weight: 100, longer: 4 },
      against: { longer: 4 },
      question: ({ epochs }) =>
        `${epochs} epochs are a short training, and a method may only be faster, not better. Both runs once more, four times as long. Compared with λ = 0, Recall@1 at λ = 100 will be …`,
      choices: DIFFERENCE,
      came: ofDifference,
      after: (run, base, world) => {
        const short = world.find({});
        return [
          paired(run, base, world, `After ${run.settings.epochs} epochs, with SO minus without`),
          short
            ? `Without SO, training four times longer took Recall@1 from ${fixed(short.recall_at_1)} to ${fixed(base.recall_at_1)}: ${signed(base.recall_at_1 - short.recall_at_1)}, where SO made ${signed(run.recall_at_1 - base.recall_at_1)}.`
            : besideFrozen(run, base, world),
        ];
      },
    },
    {
      key: "scale",
      name: "Scale",
      levers: ["scale", "epochs"],
      views: ["space", "angles", "curve"],
      found:
        "With α = 8 instead of 32, Recall@1 was higher by 0.039 after 20 epochs, and still higher by 0.017 after 240 (study scale_batches). So a part of it is speed, and a part is still there after 240.",
      set: { scale: 8 },
      against: {},
      question: ({ noun }) =>
        `The scale α says how far the loss looks beyond the hardest images; 32 is usual. Now α = 8, without SO. Compared with α = 32, Recall@1 on unseen ${noun} will be …`,
      choices: DIFFERENCE,
      came: ofDifference,
      after: (run, base, world) => {
        const so = world.find({ so_weight: 100 });
        const first = paired(run, base, world, "α = 8 minus α = 32");
        if (!so) return [first, besideFrozen(run, base, world)];
        const [scale, remedy] = [run, so].map((other) => other.recall_at_1 - base.recall_at_1);
        const more =
          Math.abs(scale) > Math.abs(remedy)
            ? "the scale, which everybody has to choose anyway, did more"
            : "SO did more than the scale";
        return [first, `SO at λ = 100 made ${signed(remedy)} from the same seed, so ${more}.`];
      },
    },
  ];
})();
