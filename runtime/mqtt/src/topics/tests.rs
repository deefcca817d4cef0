//! The topics of the contract, and which response topics a request may name.

use proptest::prelude::*;

use super::*;

fn topics() -> Topics {
    Topics::new(
        "phi-edge/v1/box",
        vec!["phi-edge/v1/box/response/#".into(), "apps/+/answers".into()],
    )
}

#[test]
fn filters_match_as_the_standard_says() {
    for (filter, topic, expected) in [
        ("a/b", "a/b", true),
        ("a/b", "a/b/c", false),
        ("a/+", "a/b", true),
        ("a/+", "a", false),
        ("a/+", "a/", true),
        ("a/#", "a", true),
        ("a/#", "a/b/c", true),
        ("#", "a/b", true),
        ("#", "$SYS/x", false),
        ("+/x", "$SYS/x", false),
        ("$SYS/#", "$SYS/x", true),
        ("+/+", "/x", true),
        ("a/#/b", "a/c/b", false),
    ] {
        assert_eq!(filter_matches(filter, topic), expected, "{filter} on {topic}");
    }
}

#[test]
fn inbound_topics_are_told_apart() {
    let t = topics().in_pool("phi-edge/v1/pool", "plant");
    for (topic, kind, scope, client) in [
        ("phi-edge/v1/box/request", InboundKind::Request, Scope::Node, None),
        (
            "phi-edge/v1/box/request/till-3",
            InboundKind::Request,
            Scope::Node,
            Some("till-3"),
        ),
        (
            "phi-edge/v1/box/cancel/x",
            InboundKind::Cancel,
            Scope::Node,
            Some("x"),
        ),
        (
            "phi-edge/v1/pool/plant/request/x",
            InboundKind::Request,
            Scope::Pool,
            Some("x"),
        ),
        (
            "phi-edge/v1/pool/plant/cancel",
            InboundKind::Cancel,
            Scope::Pool,
            None,
        ),
    ] {
        assert_eq!(t.inbound(topic), Some(Inbound { kind, scope, client }), "{topic}");
    }
    for other in [
        "phi-edge/v1/box",
        "phi-edge/v1/box/request/a/b",
        "phi-edge/v1/box/status",
        "phi-edge/v1/boxer/request",
        "phi-edge/v1/pool/other/request",
        "x",
    ] {
        assert_eq!(t.inbound(other), None, "{other}");
    }
}

#[test]
fn a_client_has_a_name_of_bounded_length() {
    let t = topics();
    let misnamed = |client: &str| {
        let topic = format!("phi-edge/v1/box/request/{client}");
        t.inbound(&topic).expect("a request").misnamed()
    };
    assert_eq!(misnamed("till-3"), None);
    assert_eq!(misnamed(&"c".repeat(MAX_CLIENT_BYTES)), None);
    assert!(misnamed(&"c".repeat(MAX_CLIENT_BYTES + 1)).is_some());
    assert!(misnamed("").is_some());
    assert_eq!(
        t.inbound("phi-edge/v1/box/request").and_then(|i| i.misnamed()),
        None
    );
}

#[test]
fn response_topics_are_bounded() {
    let t = topics();
    assert!(
        t.check_response(
            "phi-edge/v1/box/response/1",
            Scope::Node,
            None,
            &KnownClients::default()
        )
        .is_ok()
    );
    assert!(
        t.check_response("apps/till/answers", Scope::Node, None, &KnownClients::default())
            .is_ok()
    );
    for bad in ["", "a/+", "a/#", "$SYS/x", "a\0b"] {
        assert!(
            matches!(
                t.check_response(bad, Scope::Node, None, &KnownClients::default()),
                Err(TopicError::Invalid(_))
            ),
            "{bad:?}"
        );
    }
    assert!(matches!(
        t.check_response("elsewhere", Scope::Node, None, &KnownClients::default()),
        Err(TopicError::NotAllowed(_))
    ));
    assert!(
        t.check_response(
            "phi-edge/v1/box/response/c/1",
            Scope::Node,
            Some("c"),
            &KnownClients::default()
        )
        .is_ok()
    );
    for bad in [
        "phi-edge/v1/box/response/d/1",
        "phi-edge/v1/box/response/c/",
        "apps/c/answers",
    ] {
        assert!(
            matches!(
                t.check_response(bad, Scope::Node, Some("c"), &KnownClients::default()),
                Err(TopicError::NotOfClient { .. })
            ),
            "{bad}"
        );
    }
}

#[test]
fn own_topics_are_never_answered_on() {
    let t = Topics::new("b", vec!["#".into()]).in_pool("p", "x");
    for own in [
        "b/request",
        "b/cancel/c",
        "p/x/request",
        "b/status",
        "b/stats",
        "b/dead-letter",
        "b/event/r",
    ] {
        assert!(
            matches!(
                t.check_response(own, Scope::Node, None, &KnownClients::default()),
                Err(TopicError::Own(_))
            ),
            "{own}"
        );
    }
    assert!(
        t.check_response("elsewhere", Scope::Node, None, &KnownClients::default())
            .is_ok()
    );
}

#[test]
fn a_pool_shares_its_requests_and_has_responses_of_its_own() {
    let t = topics().in_pool("phi-edge/v1/pool", "plant");
    assert_eq!(
        t.shared_subscriptions(),
        [
            "$share/plant/phi-edge/v1/pool/plant/request",
            "$share/plant/phi-edge/v1/pool/plant/request/+"
        ]
    );
    assert!(
        t.check_response(
            "phi-edge/v1/pool/plant/response/c/1",
            Scope::Pool,
            Some("c"),
            &KnownClients::default()
        )
        .is_ok()
    );
    assert!(
        t.check_response(
            "phi-edge/v1/pool/plant/response/d/1",
            Scope::Pool,
            Some("c"),
            &KnownClients::default()
        )
        .is_err()
    );
    assert!(
        t.check_response(
            "phi-edge/v1/pool/plant/response/1",
            Scope::Node,
            None,
            &KnownClients::default()
        )
        .is_err()
    );
    assert_eq!(
        t.response_in(Scope::Pool, Some("c"), "1"),
        "phi-edge/v1/pool/plant/response/c/1"
    );
    assert!(topics().shared_subscriptions().is_empty());
}

/// The standard's rules, written down level by level.
fn plainly(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        ([], []) => true,
        (["#"], _) => true,
        ([f, fs @ ..], [t, ts @ ..]) => (*f == "+" || f == t) && plainly(fs, ts),
        _ => false,
    }
}

proptest! {
    #[test]
    fn matching_agrees_with_the_plain_rules(
        filter in proptest::collection::vec(prop_oneof!["[ab]", Just("+".to_owned()), Just(String::new())], 1..5),
        hash in any::<bool>(),
        topic in proptest::collection::vec(prop_oneof!["[ab]", Just(String::new())], 1..5),
    ) {
        let mut filter: Vec<&str> = filter.iter().map(String::as_str).collect();
        if hash { filter.push("#"); }
        let topic: Vec<&str> = topic.iter().map(String::as_str).collect();
        prop_assert_eq!(filter_matches(&filter.join("/"), &topic.join("/")), plainly(&filter, &topic));
    }
}

#[test]
fn events_go_to_no_topic_of_the_contract() {
    let t = topics().in_pool("phi-edge/v1/pool", "plant");
    let base = "phi-edge/v1/box";
    for own in [
        "request",
        "request/a",
        "cancel",
        "status",
        "status/x",
        "stats",
        "dead-letter",
        "response/a",
        "response/c/1",
        "response",
    ] {
        let checked = t.check_event(&format!("{base}/{own}"));
        assert!(matches!(checked, Err(TopicError::Own(_))), "{own}");
    }
    for own in ["request", "cancel/x", "response/a"] {
        assert!(
            t.check_event(&format!("phi-edge/v1/pool/plant/{own}")).is_err(),
            "{own}"
        );
    }
    for good in [
        "phi-edge/v1/box/event/r",
        "phi-edge/v1/box/ovens",
        "out/3",
        "phi-edge/v1/boxes/status",
    ] {
        assert_eq!(t.check_event(good), Ok(()), "{good}");
    }
    for bad in ["out/\u{ffff}", "out/\u{fdd0}", "out/\u{7}", "out/#", ""] {
        assert!(
            matches!(t.check_event(bad), Err(TopicError::Invalid(_))),
            "{bad:?}"
        );
    }
}

#[test]
fn a_request_of_no_client_has_no_replies_where_a_client_has_its_own() {
    let t = topics().in_pool("phi-edge/v1/pool", "plant");
    let mut known = KnownClients::default();
    let aimed = [
        ("phi-edge/v1/box/response/anna/1", Scope::Node),
        ("phi-edge/v1/box/response/anna/a/b", Scope::Node),
        // Anna's subscription to …/anna/# matches this, too.
        ("phi-edge/v1/box/response/anna", Scope::Node),
        ("phi-edge/v1/box/response/anna/1", Scope::Pool),
        ("phi-edge/v1/pool/plant/response/anna/1", Scope::Pool),
    ];
    for (topic, scope) in aimed {
        let checked = t.check_response(topic, scope, None, &known);
        assert_eq!(checked, Ok(()), "{topic}: no client of that name has spoken");
    }
    known.note("anna");
    for (topic, scope) in aimed {
        let checked = t.check_response(topic, scope, None, &known);
        assert!(
            matches!(checked, Err(TopicError::OfAnotherClient { .. })),
            "{topic}"
        );
    }
    let check = |topic: &str| t.check_response(topic, Scope::Node, None, &known);
    assert_eq!(check("phi-edge/v1/box/response/annabel/1"), Ok(()));
    assert_eq!(check("phi-edge/v1/box/response/paho/anna"), Ok(()));
    let own = t.check_response(
        "phi-edge/v1/box/response/anna/1",
        Scope::Node,
        Some("anna"),
        &known,
    );
    assert_eq!(own, Ok(()));
    // However wide a filter is, only one that names the place opens it.
    let below = "phi-edge/v1/box/response";
    let anna = format!("{below}/anna/1");
    let wide = Topics::new("phi-edge/v1/box", vec!["#".into(), format!("{below}/#")]);
    assert!(wide.check_response(&anna, Scope::Node, None, &known).is_err());
    let named = vec![format!("{below}/#"), format!("{below}/anna/#")];
    let named = Topics::new("phi-edge/v1/box", named);
    assert_eq!(named.check_response(&anna, Scope::Node, None, &known), Ok(()));
}

#[test]
fn levels_are_bounded_as_configured() {
    let t = Topics::new("b", vec!["b/response/#".into()]);
    let topic = |slashes: usize| format!("b/response/c/{}1", "a/".repeat(slashes - 3));
    assert_eq!(
        t.check_response(&topic(200), Scope::Node, Some("c"), &KnownClients::default()),
        Ok(())
    );
    assert!(
        t.check_response(&topic(201), Scope::Node, Some("c"), &KnownClients::default())
            .is_err()
    );
    let t = t.with_max_levels(1000);
    assert_eq!(
        t.check_response(&topic(201), Scope::Node, Some("c"), &KnownClients::default()),
        Ok(())
    );
}
