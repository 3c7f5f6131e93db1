# VMs of one group spread over the ways that lead away from here: to this site's hosts, and to each
# of its peers. Two that went to one peer may be at one site; two that went to different peers are
# less likely to fail together.
#
# The group is what the VM's package says (`<sj:Apart>shop-database</sj:Apart>`). That two of them
# share no host holds everywhere, without this.
#
# Copy it to policies/rank.rego of the state folder.
package sojourn.rank

import rego.v1

import data.sojourn.defaults.rank as usual

# What the usual ranking rules out stays so, and what it says of an offer is said.
exclude contains pair if some pair in usual.exclude

reasons contains pair if some pair in usual.reasons

# More than an own place is worth, and less than that the VM runs at all.
for_each := 20000000000

score[i] := usual.score[i] - (for_each * min([offer.group, 4])) if some i, offer in input.offers

reasons contains [i, reason] if {
	some i, offer in input.offers
	offer.group > 0
	reason := sprintf("has %d VMs of the same group", [offer.group])
}
