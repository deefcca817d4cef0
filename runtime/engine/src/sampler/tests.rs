use proptest::prelude::*;

use super::*;

fn sampler(change: impl FnOnce(&mut Sampling)) -> Sampler {
    let mut settings = Sampling {
        temperature: 1.0,
        ..Sampling::default()
    };
    change(&mut settings);
    Sampler::new(settings)
}

fn shares(sampler: &mut Sampler, logits: &[f32], draws: usize) -> Vec<f64> {
    let mut counts = vec![0usize; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(logits).unwrap().0 as usize] += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    counts.iter().map(|&c| c as f64 / draws as f64).collect()
}

#[test]
fn greedy_takes_the_lowest_id_among_equals_and_passes_over_nan() {
    let mut greedy = Sampler::new(Sampling::default());
    assert_eq!(greedy.sample(&[f32::NAN, 1.0, 3.0, 3.0]).unwrap(), TokenId(2));
    assert_eq!(greedy.sample(&[f32::NAN; 3]), Err(NoLogits));
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0f32, (2.0f32).ln(), (5.0f32).ln()];
    let shares = shares(&mut sampler(|s| s.seed = 7), &logits, 40_000);
    for (share, expected) in shares.iter().zip([1.0 / 8.0, 2.0 / 8.0, 5.0 / 8.0]) {
        assert!((share - expected).abs() < 0.01, "{share} is not near {expected}");
    }
}

#[test]
fn cuts_leave_what_they_say() {
    let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
    let support = |sampler: &mut Sampler| -> Vec<bool> {
        shares(sampler, &logits, 2_000)
            .iter()
            .map(|&share| share > 0.0)
            .collect()
    };
    assert_eq!(support(&mut sampler(|s| s.top_k = 2)), [true, true, false, false]);
    assert_eq!(
        support(&mut sampler(|s| s.top_p = 0.7)),
        [true, true, false, false]
    );
    assert_eq!(
        support(&mut sampler(|s| s.top_p = 0.45)),
        [true, false, false, false]
    );
    assert_eq!(
        support(&mut sampler(|s| s.min_p = 0.4)),
        [true, true, false, false]
    );
    assert_eq!(support(&mut sampler(|_| ())), [true; 4]);
}

#[test]
fn repetition_penalty_divides_positive_and_multiplies_negative_logits() {
    let mut greedy = Sampler::new(Sampling {
        repetition_penalty: 2.0,
        ..Sampling::default()
    });
    greedy.observe(TokenId(0));
    assert_eq!(greedy.sample(&[1.9, 1.0]).unwrap(), TokenId(1));
    assert_eq!(greedy.sample(&[2.1, 1.0]).unwrap(), TokenId(0));
    assert_eq!(greedy.sample(&[-0.6, -1.0]).unwrap(), TokenId(1));
}

#[test]
fn a_temperature_next_to_none_is_greedy() {
    let logits = [3.0f32, 17.5, 17.5, -2.0, 17.25];
    for temperature in [f32::from_bits(1), 1e-45, 1e-40, 1e-38, f32::MIN_POSITIVE] {
        for seed in 0..50 {
            let mut sampler = sampler(|s| (s.temperature, s.seed) = (temperature, seed));
            assert_eq!(sampler.sample(&logits), Ok(TokenId(1)), "{temperature}");
        }
    }
    // Where logits overflow to the other side, there was no token left.
    let mut negative = sampler(|s| s.temperature = 1e-38);
    assert_eq!(negative.sample(&[-30.0, -20.0, -25.0]), Ok(TokenId(1)));
}

#[test]
fn a_penalty_leaves_numbers_numbers() {
    let mut greedy = Sampler::new(Sampling {
        repetition_penalty: 10.0,
        ..Sampling::default()
    });
    greedy.observe(TokenId(0));
    assert_eq!(greedy.sample(&[-3e38]), Ok(TokenId(0)));
    let mut drawn = sampler(|s| s.repetition_penalty = 0.1);
    drawn.observe(TokenId(0));
    assert_eq!(drawn.sample(&[3e38, f32::INFINITY]), Ok(TokenId(1)));
}

#[test]
fn an_infinite_logit_wins() {
    assert_eq!(
        sampler(|_| ()).sample(&[0.0, f32::INFINITY, 1.0]).unwrap(),
        TokenId(1)
    );
}

proptest! {
    #[test]
    fn same_seed_same_draws(seed: u64, logits in prop::collection::vec(-5.0f32..5.0, 2..50)) {
        let (mut a, mut b) = (sampler(|s| s.seed = seed), sampler(|s| s.seed = seed));
        for _ in 0..20 {
            prop_assert_eq!(a.sample(&logits).unwrap(), b.sample(&logits).unwrap());
        }
    }

    #[test]
    fn any_settings_choose_a_token_of_the_vocabulary(
        logits in prop::collection::vec(prop::num::f32::ANY, 1..40),
        temperature in 0.0f32..3.0, top_k in 0usize..50, top_p in 0.0f32..1.2, min_p in 0.0f32..1.0,
    ) {
        let mut s = sampler(|s| {
            (s.temperature, s.top_k, s.top_p, s.min_p) = (temperature, top_k, top_p, min_p);
        });
        let usable = logits.iter().any(|l| *l > f32::NEG_INFINITY);
        match s.sample(&logits) {
            Ok(id) => prop_assert!(logits[id.0 as usize] > f32::NEG_INFINITY),
            Err(NoLogits) => prop_assert!(!usable),
        }
    }
}

/// Draws of the settings that clients use, over logits of a common range.
fn golden_draws(settings: Sampling) -> Vec<u32> {
    let mut sampler = Sampler::new(settings);
    (0..16u64)
        .map(|step| {
            #[expect(clippy::cast_possible_truncation, reason = "logits are singles")]
            let logit = |id: u64| (uniform(99, step * 200 + id) * 24.0 - 12.0) as f32;
            let logits: Vec<f32> = (0..200).map(logit).collect();
            let id = sampler.sample(&logits).unwrap();
            sampler.observe(id);
            id.0
        })
        .collect()
}

#[test]
fn draws_of_a_seed_stay_what_they_are() {
    let of = |change: fn(&mut Sampling)| {
        let mut settings = Sampling {
            temperature: 1.0,
            seed: 5,
            ..Sampling::default()
        };
        change(&mut settings);
        settings
    };
    for (settings, draws) in [
        (
            of(|_| ()),
            [
                69, 165, 151, 51, 22, 144, 128, 121, 73, 114, 75, 137, 5, 130, 153, 119,
            ],
        ),
        (
            of(|s| s.temperature = 0.7),
            [
                171, 165, 19, 57, 22, 152, 18, 71, 118, 41, 124, 137, 38, 198, 90, 71,
            ],
        ),
        (
            of(|s| (s.temperature, s.top_k) = (1.3, 20)),
            [
                172, 165, 31, 53, 84, 27, 145, 3, 32, 60, 75, 116, 112, 130, 155, 119,
            ],
        ),
        (
            of(|s| (s.temperature, s.top_p) = (3.0, 0.8)),
            [
                30, 188, 30, 19, 172, 39, 140, 96, 64, 150, 147, 159, 101, 32, 129, 96,
            ],
        ),
        (
            of(|s| (s.temperature, s.min_p) = (3.0, 0.05)),
            [
                156, 49, 160, 124, 176, 119, 27, 32, 112, 135, 69, 159, 15, 41, 132, 176,
            ],
        ),
        (
            of(|s| (s.temperature, s.top_p, s.repetition_penalty) = (10.0, 0.95, 1.3)),
            [
                73, 47, 102, 118, 163, 134, 109, 64, 192, 186, 44, 32, 106, 167, 125, 70,
            ],
        ),
        (
            of(|s| (s.temperature, s.repetition_penalty) = (0.0, 1.3)),
            [
                49, 165, 168, 0, 151, 5, 183, 24, 62, 110, 176, 137, 120, 127, 135, 11,
            ],
        ),
    ] {
        assert_eq!(golden_draws(settings.clone()), draws, "{settings:?}");
    }
}

/// What a node may be asked for, extremes among it.
fn any_settings() -> impl Strategy<Value = Sampling> {
    let temperature = prop_oneof![
        0.0f32..10.0,
        prop::num::f32::POSITIVE | prop::num::f32::SUBNORMAL,
        (1u32..2000).prop_map(f32::from_bits),
        Just(1e-38),
        Just(f32::MIN_POSITIVE),
    ]
    .prop_map(|temperature| temperature.min(10.0));
    let top_p = prop_oneof![0.0f32..=1.0, prop::num::f32::SUBNORMAL, Just(1.0)];
    let min_p = prop_oneof![0.0f32..=1.0, prop::num::f32::SUBNORMAL, Just(0.0), Just(1.0)];
    let top_k = prop_oneof![0usize..50, Just(u32::MAX as usize)];
    let penalty = prop_oneof![0.1f32..=10.0, Just(1.0), Just(0.1), Just(10.0)];
    (temperature, top_p, min_p, top_k, penalty, any::<u64>()).prop_map(
        |(temperature, top_p, min_p, top_k, repetition_penalty, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
        },
    )
}

/// What a broken model may return.
fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        -20.0f32..20.0,
        prop::num::f32::ANY,
        Just(f32::MAX),
        Just(f32::MIN),
        Just(f32::NEG_INFINITY),
        Just(f32::INFINITY),
        Just(f32::NAN),
        Just(0.0),
        Just(-0.0),
    ];
    prop::collection::vec(logit, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn weights_are_probabilities_whatever_comes(
        settings in any_settings(), rows in prop::collection::vec(any_logits(), 1..4), seen in prop::collection::vec(0u32..40, 0..10),
    ) {
        let mut sampler = Sampler::new(settings);
        for id in seen {
            sampler.observe(TokenId(id));
        }
        for logits in rows {
            let usable = logits.iter().any(|l| *l > f32::NEG_INFINITY);
            let chosen = sampler.sample(&logits);
            prop_assert_eq!(chosen.is_ok(), usable);
            let Ok(chosen) = chosen else { continue };
            let logit = logits[chosen.0 as usize];
            prop_assert!(logit > f32::NEG_INFINITY, "{} was chosen", logit);
            if sampler.is_greedy() {
                continue;
            }
            let weights = sampler.candidates.iter().map(|candidate| candidate.weight);
            prop_assert!(weights.clone().all(|weight| (0.0..=1.0).contains(&weight)));
            prop_assert!(weights.sum::<f32>() > 0.0);
            // Not chosen by the rounding at the end: it had a share.
            let chosen = sampler.candidates.iter().find(|candidate| candidate.id == chosen.0);
            prop_assert!(chosen.is_some_and(|candidate| candidate.weight > 0.0));
        }
    }

    #[test]
    fn temperature_falls_to_greedy(
        mut settings in any_settings(), logits in any_logits(), temperature in prop_oneof![
            (1u32..1 << 23).prop_map(f32::from_bits), 1e-38f32..1e-30, Just(1e-38), Just(f32::MIN_POSITIVE),
        ], seen in prop::collection::vec(0u32..40, 0..10),
    ) {
        settings.temperature = temperature;
        let mut sampled = Sampler::new(settings.clone());
        let mut greedy = Sampler::new(Sampling { temperature: 0.0, ..settings });
        for id in seen {
            sampled.observe(TokenId(id));
            greedy.observe(TokenId(id));
        }
        let (Ok(sampled_id), Ok(greedy_id)) = (sampled.sample(&logits), greedy.sample(&logits)) else {
            prop_assert!(logits.iter().all(|l| l.is_nan() || *l == f32::NEG_INFINITY));
            return Ok(());
        };
        // Of equal ones any may be drawn at a temperature above 0, unless it is next to none.
        let of = |id: TokenId| greedy.penalised(id.0 as usize, logits[id.0 as usize]);
        let gap = (of(greedy_id) - of(sampled_id)).abs();
        prop_assert!(sampled_id == greedy_id || gap / temperature < 104.0, "{} behind", gap);
        if !(of(greedy_id) / temperature).is_finite() {
            prop_assert_eq!(sampled_id, greedy_id);
        }
    }
}
