package sojourn.expose_test

import rego.v1

import data.sojourn.expose

offer := {"via": null, "peering": null, "price_milli": 10, "distance": 0}

from(peer, marks) := object.union(offer, {"via": peer, "peering": {"marks": marks}, "distance": 1})

request(offers) := {"peer": "beta", "peering": {"marks": []}, "offers": offers}

test_own_offers_and_those_of_partners_are_shown if {
	offers := [offer, from("gamma", ["partner"]), from("delta", ["near"])]
	expose.hide == {2} with input as request(offers)
}
