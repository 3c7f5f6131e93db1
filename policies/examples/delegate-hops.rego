# At most so many hops from the site whose user asked.
#
# Copy it to policies/delegate.rego of the state folder.
package sojourn.delegate

import rego.v1

import data.sojourn.defaults.delegate as usual

# All that is usual holds too: the hops that are left, and VMs that may not be delegated.
refuse contains reason if some reason in usual.refuse

max_hops := 2

# What every request begins with.
first_hops := 4

# A peer that may not stand in between is asked with one hop left, however far the request has come.
# It ends there in any case.
refuse contains reason if {
	input.peer != null
	"intermediate" in input.to_peering.may
	came := first_hops - input.hops_left
	came + 1 > max_hops
	reason := sprintf("this site passes on what has come less than %d hops", [max_hops])
}
