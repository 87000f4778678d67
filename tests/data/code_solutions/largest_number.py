def largest_number(numbers):
    return max(numbers) if numbers else None
