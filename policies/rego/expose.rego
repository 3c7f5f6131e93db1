# Which of several offers to show to the peer that asked.
#
# input: model::decision::Expose
# hide:  indices into input.offers that are not shown; an empty set shows all
package sojourn.expose

import rego.v1

# A peer needs a choice, not a map of everything that this site can reach.
max_offers := 8

# Cheapest first; among equals the earlier one.
by_price := sort([[offer.price_milli, i] | some i, offer in input.offers])

hide contains i if {
	some place, [_, i] in by_price
	place >= max_offers
}
