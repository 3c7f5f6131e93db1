# In which order to try several offers.
#
# input:   model::decision::Rank
# score:   for the index of each offer a number; the higher, the earlier it is tried
# reasons: [index, text], what the score of an offer is made of
# exclude: [index, text], why an offer is out of the question, whatever its score
package sojourn.rank

import rego.v1

restrictions := input.descriptor.restrictions

# What one more site in between may cost, in thousandths per hour.
price_of_distance := 10

# Prices above it are all the same, so that no price outweighs what follows.
highest_price := 1000000000

# A place of one's own comes before all others that run the VM ...
for_local := 10000000000

# ... and a place that only stores it comes after all that run it.
for_storing := -100000000000

score[i] := sum([price, distance, local, storing]) if {
	some i, offer in input.offers
	price := 0 - min([offer.price_milli, highest_price])
	distance := 0 - (offer.distance * price_of_distance)
	local := points(offer.via == null, for_local)
	storing := points(offer.runs == false, for_storing)
}

points(true, value) := value

points(false, _) := 0

reasons contains [i, reason] if {
	some i, offer in input.offers
	reason := sprintf("costs %d (thousandths per hour)", [offer.price_milli])
}

reasons contains [i, "is on this site"] if {
	some i, offer in input.offers
	offer.via == null
}

reasons contains [i, reason] if {
	some i, offer in input.offers
	offer.distance > 1
	reason := sprintf("is %d sites away", [offer.distance])
}

reasons contains [i, "stores the VM and cannot run it"] if {
	some i, offer in input.offers
	not offer.runs
}

# Null means any price. It must be asked for: null compares as less than every number.
exclude contains [i, reason] if {
	some i, offer in input.offers
	restrictions.max_price_milli != null
	offer.price_milli > restrictions.max_price_milli
	reason := sprintf("costs %d, the VM may cost %d at most (thousandths per hour)", [
		offer.price_milli,
		restrictions.max_price_milli,
	])
}

exclude contains [i, reason] if {
	some i, offer in input.offers
	count(restrictions.countries) > 0
	not offer.country in restrictions.countries
	reason := sprintf("is in %s, the VM may run in %s only", [
		place(offer.country),
		concat(", ", restrictions.countries),
	])
}

place("") := "an unnamed country"

place(country) := country if country != ""
