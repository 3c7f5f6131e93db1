# VMs of one group stay apart on the whole site, and not only on each of its hosts: where all hosts
# hang on one switch, or on one line to the power plant.
#
# The group is what the VM's package says (`<sj:Apart>shop-database</sj:Apart>`).
#
# Copy it to policies/admit.rego of the state folder.
package sojourn.admit

import rego.v1

import data.sojourn.defaults.admit as usual

# All that is usual holds too: room, country, price, VMs that stay apart.
refuse contains reason if some reason in usual.refuse

refuse contains reason if {
	input.group.site > 0
	reason := sprintf("this site has a VM of group %s already, and hosts one of each", [
		input.descriptor.restrictions.apart,
	])
}
