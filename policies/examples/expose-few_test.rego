package sojourn.expose_test

import rego.v1

import data.sojourn.expose

offer := {"via": null, "peering": null, "price_milli": 10, "distance": 0}

from(peer, marks) := object.union(offer, {"via": peer, "peering": {"marks": marks}, "distance": 1})

request(offers) := {"peer": "beta", "peering": {"marks": []}, "offers": offers}

at(price) := object.union(offer, {"price_milli": price})

offers := [at(9), at(7), at(8), at(6)]

test_a_stranger_sees_the_cheapest if {
	expose.hide == {0, 1, 2} with input as request(offers)
}

test_a_partner_sees_three if {
	partner := object.union(request(offers), {"peering": {"marks": ["partner"]}})
	expose.hide == {0} with input as partner
}
