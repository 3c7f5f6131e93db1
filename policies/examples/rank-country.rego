# By country: this site's VMs go to certain countries only, whatever their packages say, and to the
# first of them if there is a choice. A site that does not say where it is is nowhere.
#
# Copy it to policies/rank.rego of the state folder.
package sojourn.rank

import rego.v1

import data.sojourn.defaults.rank as usual

# What the usual ranking rules out stays so, and what it says of an offer is said.
exclude contains pair if some pair in usual.exclude

reasons contains pair if some pair in usual.reasons

# The most wanted first.
countries := ["CH", "DE", "FR"]

# What one place in that list is worth, in thousandths per hour.
worth := 100

score[i] := usual.score[i] - (worth * place(offer.country)) if some i, offer in input.offers

place(country) := min([at | some at, known in countries; known == country]) if country in countries

place(country) := count(countries) if not country in countries

# A place of this site's own is where this site is.
exclude contains [i, reason] if {
	some i, offer in input.offers
	offer.via != null
	not offer.country in countries
	reason := sprintf("is not in %s, where this site lets its VMs run", [concat(", ", countries)])
}
