# At most so many offers, the cheapest; fewer for strangers than for partners.
#
# Copy it to policies/expose.rego of the state folder.
package sojourn.expose

import rego.v1

import data.sojourn.defaults.expose as usual

# No more than usual are shown.
hide contains i if some i in usual.hide

default most := 1

most := 3 if "partner" in input.peering.marks

# Cheapest first; among equals the earlier one.
by_price := sort([[offer.price_milli, i] | some i, offer in input.offers])

hide contains i if {
	some place, [_, i] in by_price
	place >= most
}
