package sojourn.rank_test

import rego.v1

import data.sojourn.rank

free := {"no_delegation": false, "countries": [], "max_price_milli": null}

offer := {"via": "beta", "price_milli": 10, "class": "standard", "country": "DE", "distance": 1, "runs": true}

# A request about the usual offer and a changed one, in this order.
against(change) := {
	"descriptor": {"restrictions": free},
	"offers": [offer, object.union(offer, change)],
}

restricted(restrictions, change) := object.union(
	against(change),
	{"descriptor": {"restrictions": restrictions}},
)

test_every_offer_has_a_score_and_reasons if {
	count(rank.score) == 2 with input as against({})
	{i | some [i, _] in rank.reasons} == {0, 1} with input as against({})
}

test_the_cheaper_offer_comes_first if {
	score := rank.score with input as against({"price_milli": 9})
	score[1] > score[0]
}

test_the_nearer_offer_comes_first if {
	score := rank.score with input as against({"distance": 2})
	score[0] > score[1]
	reasons := rank.reasons with input as against({"distance": 2})
	[1, "is 2 sites away"] in reasons
}

test_an_own_place_comes_first_at_any_price if {
	score := rank.score with input as against({"via": null, "distance": 0, "price_milli": 18446744073709551615})
	score[1] > score[0]
}

test_a_place_that_only_stores_comes_last_at_any_price if {
	score := rank.score with input as against({"via": null, "distance": 0, "price_milli": 0, "runs": false})
	score[0] > score[1]
}

test_without_restrictions_nothing_is_excluded if {
	count(rank.exclude) == 0 with input as against({"price_milli": 1000000, "country": ""})
}

test_a_price_above_the_limit_is_excluded if {
	exclude := rank.exclude with input as restricted({"max_price_milli": 10}, {"price_milli": 11})
	exclude == {[1, "costs 11, the VM may cost 10 at most (thousandths per hour)"]}
}

test_another_country_is_excluded if {
	exclude := rank.exclude with input as restricted({"countries": ["DE", "FR"]}, {"country": "US"})
	exclude == {[1, "is in US, the VM may run in DE, FR only"]}
}

test_an_unnamed_country_is_excluded if {
	exclude := rank.exclude with input as restricted({"countries": ["DE"]}, {"country": ""})
	exclude == {[1, "is in an unnamed country, the VM may run in DE only"]}
}
