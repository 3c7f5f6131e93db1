package sojourn.expose_test

import rego.v1

import data.sojourn.expose

offers(prices) := {"peer": "beta", "offers": [{"price_milli": price} | some price in prices]}

test_up_to_eight_offers_are_all_shown if {
	count(expose.hide) == 0 with input as offers([1, 2, 3, 4, 5, 6, 7, 8])
}

test_of_more_offers_the_cheapest_eight_are_shown if {
	expose.hide == {0, 4} with input as offers([9, 1, 2, 3, 9, 4, 5, 6, 7, 8])
}

test_among_equal_offers_the_earlier_are_shown if {
	expose.hide == {8} with input as offers([1, 1, 1, 1, 1, 1, 1, 1, 1])
}

test_no_offers_are_no_trouble if {
	count(expose.hide) == 0 with input as offers([])
}
