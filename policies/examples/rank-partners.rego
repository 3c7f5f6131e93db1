# Partners first: an offer of a peer that is marked (`sojourn peer set PEER --mark partner`) wins
# against a cheaper one, within bounds.
#
# Copy it to policies/rank.rego of the state folder.
package sojourn.rank

import rego.v1

import data.sojourn.defaults.rank as usual

# What the usual ranking rules out stays so, and what it says of an offer is said.
exclude contains pair if some pair in usual.exclude

reasons contains pair if some pair in usual.reasons

# What it may be dearer, in thousandths per hour.
worth := 500

score[i] := usual.score[i] + bonus(offer) if some i, offer in input.offers

bonus(offer) := worth if is_partner(offer)

bonus(offer) := 0 if not is_partner(offer)

is_partner(offer) if "partner" in offer.peering.marks

reasons contains [i, "is a partner's"] if {
	some i, offer in input.offers
	is_partner(offer)
}
