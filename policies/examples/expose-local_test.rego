package sojourn.expose_test

import rego.v1

import data.sojourn.expose

offer := {"via": null, "peering": null, "price_milli": 10, "distance": 0}

from(peer, marks) := object.union(offer, {"via": peer, "peering": {"marks": marks}, "distance": 1})

request(offers) := {"peer": "beta", "peering": {"marks": []}, "offers": offers}

test_own_offers_are_shown_and_others_are_not if {
	expose.hide == {1} with input as request([offer, from("gamma", ["partner"]), offer])
}
