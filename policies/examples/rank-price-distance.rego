# By price and distance alone: a place of one's own has a price too, and a site in between counts as
# much as it is worth to be near.
#
# Copy it to policies/rank.rego of the state folder.
package sojourn.rank

import rego.v1

import data.sojourn.defaults.rank as usual

# What the usual ranking rules out stays so, and what it says of an offer is said.
exclude contains pair if some pair in usual.exclude

reasons contains pair if some pair in usual.reasons

# What an hour on this site's own hosts costs it, in thousandths.
own_price := 40

# What one more site in between may cost, in thousandths per hour.
price_of_distance := 25

score[i] := 0 - ((price(offer) + (offer.distance * price_of_distance)) + storing(offer)) if {
	some i, offer in input.offers
}

price(offer) := own_price if offer.via == null

price(offer) := min([offer.price_milli, 1000000000]) if offer.via != null

# A place that only stores the VM comes after all that run it.
storing(offer) := 0 if offer.runs

storing(offer) := 100000000000 if not offer.runs
