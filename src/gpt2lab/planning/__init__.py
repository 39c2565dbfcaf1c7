"""Planning: what a training needs, before anything is rented or started."""
